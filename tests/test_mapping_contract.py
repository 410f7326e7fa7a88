"""A store is a mapping, in whichever tier its values are; by our contract and by CPython's own tests."""

from __future__ import annotations

import unittest
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from contracts import KEYS, MappingContract, evict, merge, set_aside

import tiered

try:
    from test import mapping_tests
except ImportError:  # Some distributions leave CPython's own tests out.
    mapping_tests = None  # type: ignore[assignment]

MOVES: dict[str, Callable[[Any], None]] = {
    "hot": lambda store: None,
    "in the write buffer": evict,
    "set aside": lambda store: (set_aside(store), evict(store)),
    "checkpointed and hot": lambda store: store.save(),
    "cold": lambda store: (store.save(), evict(store)),
    "cold behind": lambda store: (store.save(), merge(store), evict(store)),
    "compacted": lambda store: (store.compact(), evict(store)),
}


class TestDict(MappingContract):
    """The contract is one that a dict keeps."""

    @pytest.fixture
    def mapping(self) -> dict[Any, Any]:
        return {}


class TestStore(MappingContract):
    @pytest.fixture
    def mapping(self, opener: Any) -> tiered.Store[Any, Any]:
        return opener(stepwise=True)

    @pytest.fixture(params=MOVES)
    def settle(self, request: pytest.FixtureRequest, mapping: Any) -> Callable[[], None]:
        return lambda: MOVES[request.param](mapping)


class TestStoreWithHelper(MappingContract):
    @pytest.fixture
    def mapping(self, opener: Any) -> tiered.Store[Any, Any]:
        return opener(helper=True)

    @pytest.fixture
    def settle(self, mapping: Any) -> Callable[[], None]:
        return lambda: (mapping.save(), evict(mapping))


class TestSub(MappingContract):
    """Beside keys that are not its own."""

    # Tuples of one element that is no tuple are another name of that element.
    some_keys: ClassVar = [key for key in KEYS if not (isinstance(key, tuple) and len(key) == 1 and key[0] != ())]

    @pytest.fixture
    def mapping(self, opener: Any) -> Any:
        store = opener(stepwise=True)
        store.update({("part", "of"): 1, ("part", "or", 1): 2, "part": 3})
        return store.sub("part", "on")

    @pytest.fixture(params=["hot", "set aside", "cold"])
    def settle(self, request: pytest.FixtureRequest, mapping: Any) -> Callable[[], None]:
        return lambda: MOVES[request.param](mapping._whole)


class TestTransaction(MappingContract):
    """With keys of the store below, all of them deleted in the transaction."""

    @pytest.fixture
    def mapping(self, opener: Any) -> Any:
        store = opener(stepwise=True)
        store.update(dict.fromkeys(KEYS[::2], "below"))
        txn = store.transaction()
        txn.clear()
        yield txn
        expected = dict(txn)
        txn.commit()
        assert dict(store) == expected

    @pytest.fixture(params=["hot", "cold"])
    def settle(self, request: pytest.FixtureRequest, mapping: Any) -> Callable[[], None]:
        store = tiered.open(mapping._engine.directory)
        yield lambda: MOVES[request.param](store)
        store.close()


class TestSubOfATransaction(MappingContract):
    some_keys = TestSub.some_keys

    @pytest.fixture
    def mapping(self, opener: Any) -> Any:
        store = opener(stepwise=True)
        store.update({("part", number): number for number in range(40)})
        txn = store.transaction()
        txn.sub("part").clear()
        yield txn.sub("part")
        txn.rollback()


if mapping_tests is not None:

    class TestMappingProtocolOfCPython(mapping_tests.TestMappingProtocol):
        """`test.mapping_tests` on stores, each fresh; all are closed at the end."""

        # A store is not made from pairs, has no copies, and takes `prefix` and so on in its views.
        test_constructor = mapping_tests.BasicTestMappingProtocol.test_constructor
        test_fromkeys = test_copy = None

        def setUp(self) -> None:
            directory = TemporaryDirectory()
            self.addCleanup(directory.cleanup)
            self.directory = Path(directory.name)
            self.stores: list[tiered.Store[Any, Any]] = []
            self.addCleanup(lambda: [store.close() for store in self.stores])
            self.addCleanup(self._check)

        def _check(self) -> None:
            assert [store.check() for store in self.stores if store.check()] == []

        def type2test(self) -> tiered.Store[Any, Any]:
            store = tiered.open(self.directory / str(len(self.stores)), memory="1MB", helper=False)
            self.stores.append(store)
            return store

        def _views_take_arguments(self, view: Any) -> None:
            assert list(view(None)) == list(view())

        def test_keys(self) -> None:
            store = self._full_mapping({"a": 1, "b": 2})
            self._views_take_arguments(store.keys)
            assert "a" in store.keys()  # noqa: SIM118
            assert "c" not in store.keys()  # noqa: SIM118
            assert list(self._empty_mapping().keys()) == []

        def test_values(self) -> None:
            store = self._full_mapping({1: 2})
            self._views_take_arguments(store.values)
            assert list(store.values()) == [2]

        def test_items(self) -> None:
            store = self._full_mapping({1: 2})
            self._views_take_arguments(store.items)
            assert list(store.items()) == [(1, 2)]

        def test_setdefault(self) -> None:
            mapping_tests.BasicTestMappingProtocol.test_setdefault(self)
            store = self._empty_mapping()
            assert store.setdefault("key0") is None
            store.setdefault("key0", [])
            assert store.setdefault("key0") is None
            # Unlike in a dict, what is returned is a copy: changing it changes nothing in the store.
            store.setdefault("key", []).append(3)
            assert store["key"] == []

        def test_popitem(self) -> None:
            mapping_tests.BasicTestMappingProtocol.test_popitem(self)
            store = self._empty_mapping()
            for number in range(500):
                store[repr(number)] = number
            for _ in range(500):
                key, value = store.popitem()
                assert value == int(key)
            assert not store

    class TestMappingProtocolOfCPythonForSubStores(TestMappingProtocolOfCPython):
        """The same on a part of a store."""

        def type2test(self) -> Any:
            store = super().type2test()
            store["beside"] = store["part", "of"] = 1
            return store.sub("part", "on")

    class TestMappingProtocolOfCPythonForTransactions(TestMappingProtocolOfCPython):
        """The same on a transaction, whose keys are the store's that it began with and its own."""

        def type2test(self) -> Any:
            return self._full_mapping({})

        def _full_mapping(self, data: dict[Any, Any]) -> Any:
            store = super().type2test()
            store.update(data)
            txn = store.transaction()
            self.addCleanup(txn.rollback)
            return txn

    def test_the_adapted_class_passes_for_a_plain_python_mapping_where_it_was_not_adapted() -> None:
        """That the subclass above runs the tests of CPython at all."""

        class Plain(mapping_tests.TestMappingProtocol):
            type2test = UserDict

        suite = unittest.defaultTestLoader.loadTestsFromTestCase(Plain)
        assert suite.countTestCases() > 15
        assert suite.run(unittest.TestResult()).wasSuccessful()

else:

    @pytest.mark.skip(reason="this Python was installed without its own tests (test.mapping_tests)")
    def test_mapping_protocol_of_cpython() -> None: ...
