"""The contract that every store keeps, as a test-suite to inherit, with strategies, a crash injector and a model.

For tests only: it needs pytest and hypothesis, and nothing else in `stores` imports it. A test module subclasses
`StoreContract`, and takes `StoreMachine.TestCase`; crashes need a system that forks.
"""

import hashlib
import os
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stores import atomic, merging
from stores.blocks import Rows
from stores.chunks import LAYOUTS, Array
from stores.collection import collect
from stores.database import Database, Transaction
from stores.errors import DamagedError, LockedError, RefusedError
from stores.geometry import Geometry
from stores.recipe import Recipe
from stores.records import Captions, VolumeRecord, facts_of, item_digest, pack_bits
from stores.store import Quarantined, Store
from stores.verification import examine
from stores.volumes import encode_parts, layouts

TEACHER: Final = "a1" * 32
CAPTIONER: Final = "b2" * 32
KILLED: Final = 137  # exit status of a process that SIGKILL ended, as a shell gives it
CHILD_S: Final = 120  # a child that takes longer is stuck
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
_WEIGHTS: Final = b"weights of the teacher"
_QUICK: Final = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],  # both layouts inherit a test
)

State = dict[tuple[str, str], Any]  # ("case" | "captions" | "rows", id) -> what reads back, comparable bit by bit


@dataclass(frozen=True)
class Content:
    """All that is put into a store for one volume.

    Attributes:
        record: Its record, not committed yet.
        parts: Its arrays by name.
        captions: One text a valid slice.
        rows: Per plane (s, parts, dim) float16, one row a valid slice.
    """

    record: VolumeRecord
    parts: Mapping[str, Array]
    captions: Captions
    rows: Sequence[Rows]

    def put_volume(self, store: Store) -> None:
        """Commit record and arrays."""
        store.commit_volume(self.record, encode_parts(self.parts, store.recipe, LAYOUTS[store.marker.layout]))

    def put_captions(self, store: Store) -> None:
        """Commit the captions."""
        store.commit_captions(CAPTIONER, self.record.volume, self.captions)

    def put_rows(self, store: Store) -> None:
        """Commit the rows."""
        record = store.record(self.record.volume)
        store.commit_rows(TEACHER, record, self.rows, captions_digest=self.captions.digest)

    def put(self, store: Store) -> None:
        """Commit all of it."""
        self.put_volume(store)
        self.put_captions(store)
        self.put_rows(store)

    def state(self, recipe: Recipe) -> State:
        """What a store of `recipe` must read back once all of it is committed."""
        volume, made_of = self.record.volume, self.record.slices_digest(recipe)
        return {
            ("case", volume): _case_state(self.record, self.parts, recipe),
            ("captions", volume): self.captions,
            ("rows", volume): (made_of, self.captions.digest, _bits(self.rows)),
        }


# Strategies


def recipes() -> st.SearchStrategy[Recipe]:
    """Recipes of tiny volumes."""
    return st.builds(
        Recipe,
        cube_size=st.sampled_from([8, 16]),
        slice_size=st.integers(4, 8),
        slice_stride=st.integers(1, 4),
        labels=st.booleans(),
    )


def volume_ids() -> st.SearchStrategy[str]:
    """Legal ids of volumes, of up to 128 letters."""
    return st.text(_LETTERS, min_size=1, max_size=128).filter(lambda volume: not volume.startswith("."))


def parts(recipe: Recipe) -> st.SearchStrategy[dict[str, Array]]:
    """A volume's arrays by name: all zero, or any bits, NaN and infinities included."""
    return st.integers(0, 1 << 32).map(lambda seed: _arrays(recipe, seed))


def valid_slices(recipe: Recipe) -> st.SearchStrategy[tuple[str, str, str]]:
    """Packed bits of the valid slices of each plane: any of the rendered positions, none included."""
    plane = st.sets(st.sampled_from(recipe.positions)).map(lambda chosen: _packed(chosen, recipe))
    return st.tuples(plane, plane, plane)


def rows(num_rows: int, *, num_parts: int = 2, dim: int = 6) -> st.SearchStrategy[Rows]:
    """Rows of one plane, any bits: (num_rows, num_parts, dim) float16."""
    return st.integers(0, 1 << 32).map(lambda seed: _array((num_rows, num_parts, dim), "float16", seed))


@st.composite
def contents(draw: st.DrawFn, recipe: Recipe, volume: str) -> Content:
    """All that is put into a store of `recipe` for the volume of this id."""
    chosen, dim = draw(parts(recipe)), draw(st.integers(1, 9))
    record = make_record(volume, recipe, chosen, draw(valid_slices(recipe)))
    word = draw(st.text(max_size=6))
    planes = [draw(rows(len(record.valid_slices(plane)), dim=dim)) for plane in range(3)]
    return Content(record, chosen, _captions(record, word), planes)


def make_record(
    volume: str, recipe: Recipe, arrays: Mapping[str, Array], valid: tuple[str, str, str]
) -> VolumeRecord:
    """Describe a volume by a record whose source digest stands for its arrays and its valid slices."""
    content = b"".join(array.tobytes() for array in arrays.values()) + repr(valid).encode()
    source = hashlib.sha256(content).hexdigest()
    record = VolumeRecord(
        volume=volume, subject=volume, dataset="set", modality="MR", body_part="head", source_digest=source,
        label_digest="", item_digest="", slot=-1, source=Geometry((4, 5, 6), np.diag([1.0, 2, 3, 1])), valid=valid,
    )  # fmt: skip
    return replace(record, item_digest=item_digest(source, "", recipe, facts_of(record)))


def make_content(volume: str, recipe: Recipe, seed: int) -> Content:
    """All that is put into a store for one volume, by a seed: every rendered slice is valid."""
    arrays = _arrays(recipe, seed)
    packed = _packed(set(recipe.positions), recipe)
    record = make_record(volume, recipe, arrays, (packed, packed, packed))
    planes = [_array((len(record.valid_slices(plane)), 2, 6), "float16", seed + plane) for plane in range(3)]
    return Content(record, arrays, _captions(record, f"text {seed}"), planes)


def _arrays(recipe: Recipe, seed: int) -> dict[str, Array]:
    return {name: _array(declared.shape, declared.dtype, seed) for name, declared in layouts(recipe).items()}


def _array(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    content = np.random.default_rng(seed).bytes(num_bytes) if seed else bytes(num_bytes)
    return np.frombuffer(content, dtype).reshape(shape)


def _packed(chosen: set[int], recipe: Recipe) -> str:
    return pack_bits(np.isin(np.arange(recipe.cube_size), sorted(chosen)))


def _captions(record: VolumeRecord, word: str) -> Captions:
    axial, coronal, sagittal = (tuple(f"{word} {p} {i}" for i in record.valid_slices(p)) for p in range(3))
    return Captions(record.source_digest, (axial, coronal, sagittal))


# What reads back


def read_state(store: Store) -> State:
    """Read everything that a store holds, every checksum verified."""
    state: State = {("case", row.case): row for row in store.quarantined()}
    for record in store.records():
        arrays = {name: store.volumes.read(name, record.slot) for name in record.objects}
        assert ("case", record.volume) not in state, f"{record.volume} is a volume, and in quarantine"
        state["case", record.volume] = _case_state(record, arrays, store.recipe)
    for table, maker, volume in store._derived():
        if table == "captions":
            state[table, volume] = store.captions(maker, volume)
        else:
            state["rows", volume] = _rows_state(store, maker, volume)
    _check_index(store, state)
    return state


def assert_sound(store: Store) -> None:
    """Require that nothing of an open store is damaged or missing, and that no writer left anything."""
    serious = [problem for problem in examine(store) if problem.serious]
    assert not serious, f"verify finds {serious}"
    assert not left_by_writers(store.path), f"writers left {left_by_writers(store.path)}"


def left_by_writers(folder: Path) -> list[Path]:
    """Every temporary file and folder below `folder`."""
    return sorted(folder.rglob(f"{atomic.TEMPORARY}*"))


def _case_state(record: VolumeRecord, arrays: Mapping[str, Array], recipe: Recipe) -> Any:
    """Begins with the identity of its slices, which rows name."""
    chunks = tuple(sorted((name, array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()))
    return record.slices_digest(recipe), record.item_digest, record.valid, record.source, chunks


def _rows_state(store: Store, maker: str, volume: str) -> Any:
    kept = store.rows_record(maker, volume)
    assert kept is not None
    planes = [store.plane_rows(maker, volume, plane) for plane in range(3)]
    return kept.item_digest, kept.captions_digest, _bits(planes)


def _bits(planes: Sequence[Rows]) -> Any:
    return tuple((plane.shape, plane.dtype.name, plane.tobytes()) for plane in planes)


def _check_index(store: Store, state: State) -> None:
    """Readers find exactly the volumes whose rows are up to date, and the rows that the store holds."""
    embeddings = store.embeddings(TEACHER)
    current = [r for r in store.records() if store.rows_are_current(store.rows_record(TEACHER, r.volume), r)]
    assert list(embeddings.index.volumes) == [record.volume for record in current], "the index is out of date"
    assert embeddings.index.slots.tolist() == [record.slot for record in current], "the index is out of date"
    for record in current:
        planes = [embeddings.plane(record.volume, plane) for plane in range(3)]
        assert _bits(planes) == state["rows", record.volume][-1], f"readers get other rows of {record.volume}"


# Crashes


def crash_after(n: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child process that ends, as by SIGKILL, before the n-th durable operation of its own.

    Durable operations are fsync, replace, rename and unlink, and the commits of the database. The caller must have no
    store open, since an open database must not cross a fork.

    Returns:
        Whether the child crashed; False when the action came to its end before.

    Raises:
        AssertionError: With the traceback, when the action failed.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # zarr's idle threads; it starts new ones in the child
        child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(n, action, writing)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        failure = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), f"the child ended with {code}:\n{failure}"
    return code == KILLED


def _run_child(n: int, action: Callable[[], object], failures: int) -> None:
    """Never returns: what was set up in the parent must not be torn down here."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_S)
        with _crashing(n):
            action()
        os._exit(0)
    except BaseException:
        os.write(failures, traceback.format_exc().encode())
    finally:
        os._exit(1)


@contextmanager
def _crashing(n: int) -> Iterator[None]:
    """Count durable operations, and end the process before the n-th."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == n:
            os._exit(KILLED)

    def before(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            step()
            return operation(*arguments, **options)

        return counted

    plain = Database.writing

    @contextmanager
    def writing(database: Database) -> Iterator[Transaction]:
        with plain(database) as transaction:
            yield transaction
            step()

    with ExitStack() as patches:
        # A crash of the process keeps what the kernel has, so the disk need not be waited for.
        patches.enter_context(mock.patch.object(os, "fsync", before(lambda _: None)))
        for name in ("replace", "rename", "unlink"):  # pathlib calls these too
            patches.enter_context(mock.patch.object(os, name, before(getattr(os, name))))
        patches.enter_context(mock.patch.object(Database, "writing", writing))
        yield


# The contract


class StoreContract:
    """Tests that every implementation of a store passes; a subclass says how one is opened.

    Attributes:
        layout: Layout of the stores that are created.
        recipe: A recipe with several slices a plane, and labels.
    """

    layout: ClassVar[str] = "compact"
    recipe: ClassVar[Recipe] = Recipe(cube_size=8, slice_size=4, slice_stride=2, labels=True)

    def open(self, path: Path, recipe: Recipe) -> Store:
        """Open the store at `path` for writing, creating it when there is none."""
        return Store.create_or_open(path, recipe, layout=self.layout)

    def build(self, path: Path, seeds: Sequence[int]) -> State:
        """Build a store of the volumes v1, v2, ... to its end; returns what it must hold."""
        chosen = [make_content(f"v{seed}", self.recipe, seed) for seed in seeds]
        with self.open(path, self.recipe) as store:
            for content in chosen:
                content.put(store)
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        return {key: value for content in chosen for key, value in content.state(self.recipe).items()}

    def require(self, path: Path, expected: State) -> None:
        """Require that the closed store at `path` is sound and holds exactly what is expected."""
        with Store(path) as store:
            assert_state(read_state(store), expected)
            assert_sound(store)

    @_QUICK
    @given(data=st.data())
    def test_what_is_put_reads_back_bit_for_bit(self, data: st.DataObject) -> None:
        """Arrays, captions and rows of any recipe, id and bits."""
        recipe = data.draw(recipes())
        chosen = [
            data.draw(contents(recipe, volume))
            for volume in data.draw(st.lists(volume_ids(), min_size=1, max_size=2, unique=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            with self.open(Path(folder, "s"), recipe) as store:
                for content in chosen:
                    content.put(store)
                store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
            self.require(Path(folder, "s"), {k: v for content in chosen for k, v in content.state(recipe).items()})

    @_QUICK
    @given(order=st.permutations([1, 2, 3]))
    def test_the_digest_does_not_depend_on_the_order(self, order: list[int]) -> None:
        """Stores of equal content are equal, whatever the order they were built in."""
        with tempfile.TemporaryDirectory() as folder:
            a, b = Path(folder, "a"), Path(folder, "b")
            assert self.build(a, [1, 2, 3]) == self.build(b, order)
            with Store(a) as first, Store(b) as second:
                assert first.digest() == second.digest(), f"built in the order {order}"
                assert not list(merging.diff(first, second))
                assert_sound(second)

    def test_the_digest_tells_contents_apart(self, tmp_path: Path) -> None:
        """A store of less, or of other content, has another digest."""
        digests = set()
        for number, seeds in enumerate(([1], [2], [1, 2])):
            self.build(tmp_path / str(number), seeds)
            with Store(tmp_path / str(number)) as store:
                digests.add(store.digest())
        assert len(digests) == 3

    def test_a_replacement_leaves_no_old_bytes(self, tmp_path: Path) -> None:
        """Neither arrays, captions nor rows of what was there before."""
        path = tmp_path / "s"
        expected = self.build(path, [1, 2])
        new = make_content("v1", self.recipe, 7)
        with self.open(path, self.recipe) as store:
            old = {store.volumes.chunk_path(name, store.record("v1").slot) for name in store.volumes.layouts}
            new.put(store)
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
            assert not [chunk for chunk in old if chunk.exists()], "chunks of the old volume are still there"
            assert len(list(store.volumes.chunks())) == 2 * len(store.volumes.layouts)
        self.require(path, expected | new.state(self.recipe))

    def test_rows_of_a_replaced_volume_are_not_read(self, tmp_path: Path) -> None:
        """They are out of date until the new ones come."""
        path = tmp_path / "s"
        self.build(path, [1, 2])
        with self.open(path, self.recipe) as store:
            make_content("v1", self.recipe, 7).put_volume(store)
            assert list(store.embeddings(TEACHER).index.volumes) == ["v2"]
            assert_sound(store)

    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        """In another process as in this one."""
        path = tmp_path / "s"
        expected = self.build(path, [1])

        def refused() -> None:
            with pytest.raises(LockedError, match="E_LOCKED"):
                self.open(path, self.recipe).close()

        with self.open(path, self.recipe):
            refused()
            # The child opens nothing of its parent's: it is refused before it comes to the database.
            assert not crash_after(0, refused)
        self.require(path, expected)

    def test_a_missing_item_is_an_error_and_never_zeros(self, tmp_path: Path) -> None:
        """Volumes, chunks, rows, and the store itself."""
        path = tmp_path / "s"
        with pytest.raises(RefusedError, match="E_STORE"):
            Store(path)
        expected = self.build(path, [1])
        with Store(path) as store:
            slot = store.record("v1").slot
            with pytest.raises(RefusedError, match=r"E_MISSING.*v2"):
                store.record("v2")
            assert store.find("v2") is None
            assert store.captions(CAPTIONER, "v2") is None
            assert store.rows_record(TEACHER, "v2") is None
            for name in store.volumes.layouts:
                with pytest.raises(DamagedError, match="E_MISSING"):
                    store.volumes.read(name, slot + 1)
            for absent in ((TEACHER, "v2"), (CAPTIONER, "v1")):
                with pytest.raises(DamagedError, match="E_MISSING"):
                    store.plane_rows(*absent, 0)
            with pytest.raises(DamagedError, match="E_MISSING"):
                store.embeddings(TEACHER).plane("v2", 0)
        self.require(path, expected)

    def test_a_removed_chunk_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        """For readers and for verify."""
        path = tmp_path / "s"
        expected = self.build(path, [1])
        with Store(path) as store:
            for name, chunk, _ in _chunks_put_back(store):
                chunk.unlink()
                _require_named(store, name, chunk, kind="missing")
        self.require(path, expected)

    def test_a_flipped_byte_in_any_chunk_is_an_error_that_names_it(self, tmp_path: Path) -> None:
        """First, middle and last byte, and one in the checksum."""
        path = tmp_path / "s"
        expected = self.build(path, [1])
        with Store(path) as store:
            for name, chunk, content in _chunks_put_back(store):
                for place in (0, len(content) // 2, len(content) - 5, len(content) - 1):
                    chunk.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
                    _require_named(store, name, chunk, kind="damaged")
        self.require(path, expected)

    def test_a_refused_case_is_in_quarantine_until_it_is_put(self, tmp_path: Path) -> None:
        """And an earlier version of it is no volume any more."""
        path = tmp_path / "s"
        expected = self.build(path, [1, 2])
        row = Quarantined("v1", "v1.nii.gz", "E_TRUNCATED", "ends early")
        with self.open(path, self.recipe) as store:
            store.commit_quarantine(row)
            store.write_quarantine_table()
        self.require(path, expected | {("case", "v1"): row})
        with Store(path) as store:
            assert store.quarantined() == [row]
            assert list(store.embeddings(TEACHER).index.volumes) == ["v2"]
        with self.open(path, self.recipe) as store:
            make_content("v1", self.recipe, 1).put(store)
            store.write_quarantine_table()
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        self.require(path, expected)

    def test_quarantine_is_lifted(self, tmp_path: Path) -> None:
        """Without a volume in its place."""
        path = tmp_path / "s"
        expected = self.build(path, [1])
        with self.open(path, self.recipe) as store:
            store.commit_quarantine(Quarantined("v9", "v9.nii.gz", "E_EMPTY", "is empty"))
            store.lift_quarantine("v9")
            assert not store.quarantined()
        self.require(path, expected)

    def test_reopening_gives_the_same(self, tmp_path: Path) -> None:
        """For writing and for reading, any number of times."""
        path = tmp_path / "s"
        expected = self.build(path, [1, 2])
        with Store(path) as store:
            digest = store.digest()
        for _ in range(2):
            with self.open(path, self.recipe) as store:
                assert store.digest() == digest
            self.require(path, expected)


def assert_state(actual: State, expected: State) -> None:
    """Require that two states are equal, naming the items that differ."""
    assert actual == expected, f"{_differing(actual, expected)} differ from what was put"


def _differing(actual: State, expected: State) -> list[tuple[str, str]]:
    return sorted(key for key in actual.keys() | expected.keys() if actual.get(key) != expected.get(key))


def _chunks_put_back(store: Store) -> Iterator[tuple[str, Path, bytes]]:
    """Name, file and bytes of each chunk of slot 0, which the caller may spoil: the bytes are put back after it."""
    for name in store.volumes.layouts:
        chunk = store.volumes.chunk_path(name, 0)
        content = chunk.read_bytes()
        yield name, chunk, content
        chunk.write_bytes(content)


def _require_named(store: Store, name: str, chunk: Path, *, kind: str) -> None:
    """Require that reading and verifying name a bad chunk file."""
    with pytest.raises(DamagedError, match=r"E_MISSING|E_CORRUPT") as caught:
        store.volumes.read(name, 0)
    assert str(chunk) in caught.value.message
    items = [problem.item for problem in examine(store) if problem.kind == kind]
    assert len(items) == 1
    assert str(chunk.relative_to(store.path)) in items[0]


# The model


@dataclass(frozen=True)
class Step:
    """One call that a store acknowledges, and what it changes in the model."""

    call: Callable[[Store], object]
    effect: Callable[[State], State] = lambda state: state


class StoreMachine(RuleBasedStateMachine):
    """Puts, replaces, quarantines, merges, collects and crashes, beside a dictionary that does the same.

    The store is closed between rules: each of them may fork.
    """

    layout: ClassVar[str] = "compact"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "s")
        self.model: State = {}
        self.sources = 0

    def open(self, path: Path) -> Store:
        """Open the store at `path` for writing, creating it when there is none."""
        return Store.create_or_open(path, self.recipe, layout=self.layout)

    def teardown(self) -> None:
        """Remove all stores."""
        self.folder.cleanup()

    @initialize(recipe=recipes(), ids=st.lists(volume_ids(), min_size=2, max_size=4, unique=True))
    def create(self, recipe: Recipe, ids: list[str]) -> None:
        """Create an empty store."""
        self.recipe, self.ids = recipe, ids
        self.open(self.path).close()

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        """Put any volume."""
        self._perform(self._putting(data.draw(st.sampled_from(self.ids)), data))

    @precondition(lambda self: self._volumes())
    @rule(data=st.data())
    def replace_volume(self, data: st.DataObject) -> None:
        """Put other content under an id that there is."""
        self._perform(self._putting(data.draw(st.sampled_from(self._volumes())), data))

    @rule(data=st.data())
    def quarantine(self, data: st.DataObject) -> None:
        """Refuse a case, be it a volume or not."""
        self._perform(self._refusing(data.draw(st.sampled_from(self.ids))))

    @rule()
    def reopen(self) -> None:
        """Open for writing, and close."""
        self._perform([])

    @rule()
    def collect_garbage(self) -> None:
        """Remove what no reader can reach."""
        self._perform([self._collecting()])

    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        """Merge another small store; one that holds another volume under the same id is refused."""
        step, conflict = self._merging(data)
        if not conflict:
            self._perform([step])
            return
        with pytest.raises(RefusedError, match="E_DUPLICATE_ID"):
            self._perform([step])

    @rule(data=st.data(), n=st.integers(1, 35))
    def crash_while_putting(self, data: st.DataObject, n: int) -> None:
        """Crash anywhere between opening for writing and the end of a put."""
        self._crash(self._putting(data.draw(st.sampled_from(self.ids)), data), n)

    @rule(data=st.data(), n=st.integers(1, 12))
    def crash_while_refusing(self, data: st.DataObject, n: int) -> None:
        """Crash around a quarantine."""
        self._crash(self._refusing(data.draw(st.sampled_from(self.ids))), n)

    @rule(n=st.integers(1, 12))
    def crash_while_collecting(self, n: int) -> None:
        """Crash in a collection."""
        self._crash([self._collecting()], n)

    @rule(data=st.data(), n=st.integers(1, 70))
    def crash_while_merging(self, data: st.DataObject, n: int) -> None:
        """Crash in a merge; a rerun then comes to its end."""
        step, conflict = self._merging(data)
        if not conflict:
            self._crash([step], n)
            self._perform([step])

    @invariant()
    def everything_reads_back(self) -> None:
        """Everything in the model, bit by bit, and nothing else."""
        if self.path.exists():
            with Store(self.path) as store:
                assert_state(read_state(store), self.model)

    def _perform(self, steps: Sequence[Step]) -> None:
        with self.open(self.path) as store:
            for step in steps:
                step.call(store)
                self.model = step.effect(self.model)

    def _crash(self, steps: Sequence[Step], n: int) -> None:
        """Crash before the n-th durable operation; what was acknowledged must be there, the next step may be."""
        acknowledged = Path(self.folder.name, "acknowledged")
        acknowledged.write_bytes(b"")

        def act() -> None:
            with self.open(self.path) as store, acknowledged.open("ab", buffering=0) as log:
                for step in steps:
                    step.call(store)
                    log.write(b".")

        crashed = crash_after(n, act)
        done = acknowledged.stat().st_size
        assert crashed or done == len(steps)
        before = self.model
        for step in steps[:done]:
            before = step.effect(before)
        after = steps[done].effect(before) if done < len(steps) else before
        self._recover(before, after)

    def _recover(self, before: State, after: State) -> None:
        """Open for writing; each item must be what it was before the step in hand, or after it."""
        with self.open(self.path) as store:
            state = read_state(store)
            assert_sound(store)
        for key in before.keys() | after.keys() | state.keys():
            known = state.get(key) in (before.get(key), after.get(key))
            assert known, f"{key} is neither what it was nor what it shall be"
        self.model = state

    def _volumes(self) -> list[str]:
        return sorted(i for (table, i), v in self.model.items() if table == "case" and not isinstance(v, Quarantined))

    def _putting(self, volume: str, data: st.DataObject) -> list[Step]:
        content = data.draw(contents(self.recipe, volume))
        case, captions, made = content.state(self.recipe).items()
        return [
            Step(content.put_volume, lambda state: state | dict([case])),
            Step(content.put_captions, lambda state: state | dict([captions])),
            Step(content.put_rows, lambda state: state | dict([made])),
            Step(self._finish),
        ]

    def _refusing(self, volume: str) -> list[Step]:
        row = Quarantined(volume, f"{volume}.nii.gz", "E_TRUNCATED", "ends early")
        return [
            Step(lambda store: store.commit_quarantine(row), lambda state: state | {("case", volume): row}),
            Step(lambda store: store.write_quarantine_table()),
        ]

    def _collecting(self) -> Step:
        return Step(collect, lambda state: {key: value for key, value in state.items() if _is_reachable(key, state)})

    def _merging(self, data: st.DataObject) -> tuple[Step, bool]:
        """Merge a new store of one or two volumes; and whether that must be refused."""
        volumes = data.draw(st.lists(st.sampled_from(self.ids), min_size=1, max_size=2, unique=True))
        chosen = [data.draw(contents(self.recipe, volume)) for volume in volumes]
        self.sources += 1
        path = Path(self.folder.name, f"source{self.sources}")
        with self.open(path) as store:
            _commit_teacher(store)
            for content in chosen:
                content.put(store)
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        new = {key: value for content in chosen for key, value in content.state(self.recipe).items()}
        conflict = any(
            new["case", i][1] != self.model["case", i][1] for i in volumes if i in self._volumes()
        )  # of another item digest
        return Step(lambda store: _merge_from(store, path), lambda state: state | new), conflict

    @staticmethod
    def _finish(store: Store) -> None:
        """End a build, if all volumes have the rows that it must come to."""
        records = store.records()
        if all(store.rows_are_current(store.rows_record(TEACHER, record.volume), record) for record in records):
            store.write_quarantine_table()
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)


def _is_reachable(key: tuple[str, str], state: State) -> bool:
    table, volume = key
    case = state.get(("case", volume))
    if table == "case":
        return True
    if case is None or isinstance(case, Quarantined):
        return False
    return table == "captions" or bool(state[key][0] == case[0])


def _commit_teacher(store: Store) -> None:
    atomic.write_folder(store.teacher_folder(TEACHER), lambda folder: (folder / "weights").write_bytes(_WEIGHTS))
    store.commit_facts("teacher", TEACHER, {"files": {"weights": hashlib.sha256(_WEIGHTS).hexdigest()}})


def _merge_from(target: Store, path: Path) -> None:
    with Store(path) as source:
        merging.merge(target, [source], report=lambda *_, **__: None, check=lambda: None)
