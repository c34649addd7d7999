"""The text inside a model: protobuf promises UTF-8 but does not check it when it reads."""

from __future__ import annotations

from google.protobuf.message import Message
from onnx import TensorProto

from onnxprune.errors import ModelError


def check_text(message: Message, what: str) -> None:
    """Raise ModelError where a name or a text of the model is not UTF-8, because it could not be written again.

    Raises:
        ModelError: Some text holds other bytes, as in a damaged file.
    """
    for descriptor, found in message.ListFields():
        if descriptor.type == descriptor.TYPE_STRING:
            for text in [found] if isinstance(found, str | bytes) else found:
                _check(text, descriptor.name, what)
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            for part in [found] if isinstance(found, Message) else found:
                if isinstance(part, TensorProto):
                    _check(part.name, "name", what)
                else:
                    check_text(part, what)


def _check(text: str | bytes, field: str, what: str) -> None:
    try:
        plain = text if isinstance(text, bytes) else text.encode()
        plain.decode()
    except UnicodeError as error:
        raise ModelError(f"{what} is damaged: a {field} in it is not UTF-8 text") from error
