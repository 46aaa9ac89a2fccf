from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from testproject.contact.forms import ContactMessageForm
from testproject.contact.models import Message
from testproject.contact.sequences import ContactForm

#: What the visitor reads while a step is running.
LABELS = {
    "create_message": "We are reading your message",
    "assign_message": "We are looking for the right team",
    "render_mail": "We are writing to them",
    "send_mail": "Our email is on its way to them",
}


def write(request: HttpRequest) -> HttpResponse:
    form = ContactMessageForm(request.POST or None)
    if form.is_valid():
        sequence = ContactForm(**form.cleaned_data)
        return redirect("thanks", run_id=sequence.run.pk)
    return render(request, "contact/write.html", {"form": form})


def thanks(request: HttpRequest, run_id: UUID) -> HttpResponse:
    run = get_object_or_404(ContactForm.runs, pk=run_id)
    return render(request, "contact/thanks.html", {"run": run, "labels": LABELS})


def read(request: HttpRequest, run_id: UUID) -> HttpResponse:
    """The message that a run has created."""
    run = get_object_or_404(ContactForm.runs, pk=run_id)
    messages = Message.objects.select_related("team")
    message = get_object_or_404(messages, pk=run.data.get("message_id"))
    return render(request, "contact/message.html", {"message": message})
