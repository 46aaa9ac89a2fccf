from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from sequences.models import SequenceRun
from testproject.contact.forms import ContactMessageForm
from testproject.contact.sequences import ContactForm


def write(request: HttpRequest) -> HttpResponse:
    form = ContactMessageForm(request.POST or None)
    if form.is_valid():
        sequence = ContactForm(**form.cleaned_data)
        return redirect("thanks", run_id=sequence.run.pk)
    return render(request, "contact/write.html", {"form": form})


def thanks(request: HttpRequest, run_id: str) -> HttpResponse:
    run = get_object_or_404(SequenceRun, pk=run_id)
    return render(request, "contact/thanks.html", {"run": run, "steps": run.steps.order_by("pk")})
