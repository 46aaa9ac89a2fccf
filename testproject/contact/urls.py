from django.urls import path

from testproject.contact import views

urlpatterns = [
    path("", views.write, name="write"),
    path("thanks/<uuid:run_id>/", views.thanks, name="thanks"),
    path("message/<uuid:run_id>/", views.read, name="message"),
]
