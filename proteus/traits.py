"""What an object has, whatever its class: protocols that `isinstance` can ask of modules, too."""

from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import get_protocol_members, is_protocol

if TYPE_CHECKING:
    from abc import ABCMeta as _ProtocolMeta
else:
    _ProtocolMeta = type(Protocol)


class _Asked(_ProtocolMeta):
    def __instancecheck__(cls, instance: Any) -> bool:  # noqa: N805 - of a metaclass
        if super().__instancecheck__(instance):
            return True
        return is_protocol(cls) and all(
            _has(instance, name, method=any(callable(vars(base).get(name)) for base in cls.__mro__))
            for name in get_protocol_members(cls)
        )


def _has(instance: Any, name: str, *, method: bool) -> bool:
    try:
        value = getattr(instance, name)
    except AttributeError:
        return False
    # A method that is None is one that the class does without, as for `isinstance` itself.
    return value is not None or not method


class Trait(Protocol, metaclass=_Asked):
    """Base of every runtime protocol here: `class HasBlocks(Trait, Protocol)`.

    From Python 3.12 on `isinstance` looks only at what stands in an object's `__dict__` and its
    class. A module keeps parameters and parts elsewhere and gives them when asked (`__getattr__`),
    so that no module has a part for such a protocol. This one asks, as all did before.

    Examples:
        >>> from typing import runtime_checkable
        >>> @runtime_checkable
        ... class HasHead(Trait, Protocol):
        ...     head: torch.nn.Module
        >>> model = torch.nn.Module()
        >>> isinstance(model, HasHead)
        False
        >>> model.head = torch.nn.Identity()
        >>> isinstance(model, HasHead)
        True
    """
