"""A Django project in one file. Every subscriber sees an order as soon as its transaction is committed.

.venv/bin/python docs/examples/recipes/django_app.py runserver 8002
curl -d item=tea localhost:8002/orders
"""
# ruff: noqa: INP001  # a program, not a part of a package

from __future__ import annotations

import functools
import os
import sqlite3
import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from qgstream import Publisher

# In memory, so that trying it leaves no file behind. It lives as long as a connection to it is open.
DATABASE = os.environ.get("DATABASE", "file:orders?mode=memory&cache=shared")
kept = sqlite3.connect(DATABASE, uri=True)

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE}},
    EVENTS_URL=os.environ.get("EVENTS_URL", "http://localhost:8000"),
    EVENTS_KEY=os.environ.get("EVENTS_KEY", "dev"),
    ROOT_URLCONF=__name__,
)


@functools.cache
def publisher() -> Publisher:
    """Make one publisher for each process, at the first call: a server has forked its workers by then."""
    return Publisher(settings.EVENTS_URL, key=settings.EVENTS_KEY, deadline_seconds=5)


@csrf_exempt
@require_POST
@transaction.atomic
def create_order(request: HttpRequest) -> JsonResponse:
    """Accept an order. The event follows the commit, so no subscriber sees an order that was rolled back."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)")
        cursor.execute("INSERT INTO orders (item) VALUES (%s)", [request.POST["item"]])
        order = {"order": cursor.lastrowid, "item": request.POST["item"]}
    if order["item"] == "coffee":
        transaction.set_rollback(True)
        return JsonResponse({"error": "there is no coffee"}, status=409)
    # robust: the order stays valid even if the publish fails; Django logs the failure.
    transaction.on_commit(functools.partial(publisher().publish, "orders", order, event="created"), robust=True)
    return JsonResponse(order)


urlpatterns = [path("orders", create_order)]

if __name__ == "__main__":
    django.setup()
    execute_from_command_line([sys.argv[0], *sys.argv[1:]])
