"""What `qgstream serve --dev` sets: the settings of conf/dev.toml, which is not in the package. Pure."""

from __future__ import annotations

from collections.abc import Mapping

PUBLISH_KEY = "dev"
ADMIN_KEY = "dev-admin"

# A test holds it to conf/dev.toml.
SETTINGS: Mapping[str, object] = {
    "server.host": "127.0.0.1",
    "server.port": 8000,
    "cors.allow_origins": ["*"],
    "auth.publish_keys": {"dev": PUBLISH_KEY},
    "auth.admin_keys": {"dev": ADMIN_KEY},
    "log.env": "development",
    "drain.seconds": 1,
}
