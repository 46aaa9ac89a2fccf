from django import forms

from testproject.contact.models import Message


class ContactMessageForm(forms.ModelForm):
    """Validates a message; the sequence's first step saves it."""

    class Meta:
        model = Message
        fields = ["name", "email", "topic", "body"]
