"""Who waits, and who is next: tenants take turns, and each tenant's adapters among themselves."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Line(Generic[T]):
    """Waiting things.

    A tenant with many requests delays another's first one by one turn, and an adapter that is much asked for the
    first one of another adapter likewise. Among the same adapter's, who came first is first.
    """

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, OrderedDict[str, deque[T]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (one for adapters in self._tenants.values() for queue in adapters.values() for one in queue)

    def put(self, one: T, tenant: str, adapter: str) -> None:
        """Let one wait.

        Args:
            one: who.
            tenant: whose it is.
            adapter: the first that it wants; "" for the base model.
        """
        self._tenants.setdefault(tenant, OrderedDict()).setdefault(adapter, deque()).append(one)
        self._count += 1

    def pop(self) -> T:
        """The next one."""
        tenant, adapters = self._tenants.popitem(last=False)
        adapter, queue = adapters.popitem(last=False)
        one = queue.popleft()
        self._count -= 1
        if queue:
            adapters[adapter] = queue
        if adapters:
            self._tenants[tenant] = adapters
        return one

    def drop(self, one: T) -> bool:
        """Let one go that waits no more; whether it was here."""
        for tenant, adapters in self._tenants.items():
            for adapter, queue in adapters.items():
                if one in queue:
                    queue.remove(one)
                    self._count -= 1
                    if not queue:
                        del adapters[adapter]
                    if not adapters:
                        del self._tenants[tenant]
                    return True
        return False


def has_place(waiting: Sequence[str], tenant: str, places: int) -> bool:
    """Whether one more may wait: there is room, or its tenant has less than an equal share of the places.

    Who asks for much would else keep others out, for he takes each place as soon as it is free.

    Args:
        waiting: the tenants of those who wait.
        tenant: of the one who comes.
        places: how many may wait.
    """
    return len(waiting) < places or waiting.count(tenant) < places // len({*waiting, tenant})
