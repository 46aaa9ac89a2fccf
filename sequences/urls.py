"""Include with ``path("sequences/", include("sequences.urls"))``."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "sequences"
urlpatterns = [
    path("status/<str:token>/", views.run_status, name="status"),
    path("progress/<str:token>/", views.progress, name="progress"),
    path("deliver/<str:token>/", views.deliver, name="deliver"),
    path("run/<uuid:pk>/status/", views.status_by_id, name="run_status"),
]
