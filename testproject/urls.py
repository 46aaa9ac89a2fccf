from django.contrib import admin
from django.urls import include, path
from django.views.generic import TemplateView

urlpatterns = [
    path("", TemplateView.as_view(template_name="start.html"), name="start"),
    path("contact/", include("testproject.contact.urls")),
    path("orders/", include("testproject.orders.urls")),
    path("sequences/", include("sequences.urls")),
    path("admin/", admin.site.urls),
]
