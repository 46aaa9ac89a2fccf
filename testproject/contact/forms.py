from django import forms

from testproject.contact.models import Message


class ContactMessageForm(forms.ModelForm):
    """Checks a message; saving it is the sequence's first step."""

    class Meta:
        model = Message
        fields = ["name", "email", "topic", "body"]
