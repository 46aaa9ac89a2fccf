from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("testproject.contact.urls")),
    path("admin/", admin.site.urls),
]
