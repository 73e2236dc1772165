"""The reference worker configuration: ``app.config_from_object("celeryconfig")``, or a model for your own.

It is what `remote-inference worker` runs with. Beside it, an app needs its broker and the deployments::

    broker_url = "amqp://"
    inference = "inference.toml"          # what Inference(app) reads where it is given nothing
"""

from remote_inference.cli.worker_settings import *  # noqa: F403 - a configuration module is its names
