from django.urls import path

from testproject.orders import views

urlpatterns = [
    path("", views.place, name="place_order"),
    path("<uuid:order_id>/", views.show, name="order"),
    path("<uuid:order_id>/approve/", views.approve, name="approve_order"),
]
