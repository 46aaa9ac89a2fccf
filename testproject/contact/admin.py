from django.contrib import admin

from testproject.contact.models import Message, Team


@admin.register(Team)
class TeamAdmin(admin.ModelAdmin):
    list_display = ["name", "topic"]


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    list_display = ["name", "email", "topic", "team", "created_at"]
    list_filter = ["topic", "team"]
    list_select_related = ["team"]
    search_fields = ["name", "email", "body"]
    date_hierarchy = "created_at"
