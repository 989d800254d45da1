"""How training activations are kept on disk: bounded, shared, never read where they are not what they say."""

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from dmsae.activation_cache import ActivationCache
from dmsae.activations import Dropped
from dmsae.file_locks import deleting, try_lock
from dmsae.kept_activations import keep_batches, keep_windows, windows_key
from dmsae.windows import Count, Windows
from tests.harvesting import harvester, make_contexts, make_source
from tests.tiny import tiny_loaded

PLENTY = 2**31


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


@pytest.fixture(scope="module")
def expected(loaded):
    source = make_source(loaded)
    return [source.read(window) for window in range(3)]


def kept(loaded, folder, contexts=None, *, max_bytes=PLENTY, **settings):
    source = make_source(loaded, contexts, **settings)
    return Windows(
        source, max_resident_bytes=0, store=keep_windows(ActivationCache(folder, max_bytes=max_bytes), source)
    )


def fill(windows):
    for window in range(len(windows)):
        windows.get(window)
    return windows


def assert_same(windows, expected):
    for number, window in enumerate(expected):
        found = windows.get(number)
        for mine, theirs in zip((*found.tokens, found.norms), (*window.tokens, window.norms), strict=True):
            assert torch.equal(mine, theirs)


def folders(root):
    return sorted(each.name for each in root.iterdir() if each.is_dir())


def test_windows_from_disk_have_the_same_bits_and_spare_the_model(loaded, expected, tmp_path, monkeypatch):
    cold = kept(loaded, tmp_path)
    assert_same(cold, expected)
    assert cold.usage.n_tokens_cached == 0
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    warm = kept(loaded, tmp_path)
    assert_same(warm, expected)
    assert torch.equal(warm.norms(1), expected[1].norms)
    usage = warm.usage
    assert (usage.n_tokens_harvested, usage.n_tokens_cached) == (0, warm.source.n_tokens)
    assert usage.error == cold.usage.error


def test_a_cache_that_holds_some_windows_is_used_for_those(loaded, expected, tmp_path):
    kept(loaded, tmp_path).get(1)
    windows = kept(loaded, tmp_path)
    assert_same(windows, expected)
    assert windows.usage.n_tokens_cached == len(expected[1].norms)


def tear(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(bytes(content))


def empty(file):
    file.write_bytes(b"")


def put_another_in_its_place(file):
    file.write_bytes((file.parent / "2.safetensors").read_bytes())


@pytest.mark.parametrize("harm", [tear, flip_a_bit, empty, put_another_in_its_place, Path.unlink])
def test_a_window_that_is_torn_changed_foreign_or_gone_is_harvested_again(loaded, expected, tmp_path, harm):
    fill(kept(loaded, tmp_path))
    (file,) = tmp_path.glob("*/0.safetensors")
    harm(file)
    again = kept(loaded, tmp_path)
    assert_same(again, expected)
    assert again.usage.n_tokens_harvested == len(expected[0].norms)
    assert_same(kept(loaded, tmp_path), expected)


def test_a_file_under_another_key_is_never_read(loaded, expected, tmp_path):
    """A folder that was copied or renamed says in each file what it is of."""
    other = fill(kept(loaded, tmp_path, make_contexts(800, seed=1)))
    other.close()
    (tmp_path / windows_key(other.source)).rename(tmp_path / windows_key(make_source(loaded)))
    windows = kept(loaded, tmp_path)
    assert_same(windows, expected)
    assert windows.usage.n_tokens_cached == 0


@pytest.mark.parametrize(
    "settings",
    [{"layer": 2}, {"hook": "mlp_out"}, {"model_batch_contexts": 8}, {"shuffle_window_contexts": 300}],
)
def test_whatever_decides_the_bits_has_a_place_of_its_own(loaded, tmp_path, settings):
    windows = kept(loaded, tmp_path), kept(loaded, tmp_path, **settings)
    assert len(folders(tmp_path)) == 2
    fill(windows[0])
    assert_same(windows[1], [make_source(loaded, **settings).read(window) for window in range(2)])
    assert windows[1].usage.n_tokens_cached == 0


def test_other_tokens_padding_documents_or_threads_have_places_of_their_own(loaded):
    contexts = make_contexts(800)
    is_token, documents = contexts.is_token.clone(), contexts.document_index.clone()
    is_token[5, 7], documents[5, 7] = False, -1
    others = [
        make_contexts(800, seed=1),
        contexts._replace(is_token=is_token),
        contexts._replace(document_index=documents),
    ]
    keys = {windows_key(make_source(loaded, each)) for each in (contexts, *others)}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    keys.add(windows_key(make_source(loaded, contexts)))
    torch.set_num_threads(before)
    assert len(keys) == 5
    assert windows_key(make_source(loaded, contexts)) in keys


def size_of(root):
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def test_the_least_recently_used_parts_leave_and_the_bound_holds(loaded, tmp_path):
    parts = [make_contexts(256, seed=seed) for seed in range(3)]
    keys = [windows_key(make_source(loaded, part)) for part in parts]
    one = make_source(loaded, parts[0]).read(0).n_bytes
    bound = int(2.5 * one)
    for part in (0, 1, 0, 2):
        windows = fill(kept(loaded, tmp_path, parts[part], max_bytes=bound))
        windows.close()
        assert windows.trouble is None
        assert size_of(tmp_path) <= bound
    assert folders(tmp_path) == sorted([keys[0], keys[2]])


def test_a_part_that_a_trainer_uses_is_never_deleted(loaded, expected, tmp_path, monkeypatch):
    used = fill(kept(loaded, tmp_path))
    n_bytes = size_of(tmp_path)
    contexts, bound = make_contexts(800, seed=1), int(1.3 * n_bytes)
    other = fill(kept(loaded, tmp_path, contexts, max_bytes=bound))
    assert "bytes are needed" in other.trouble
    assert size_of(tmp_path) <= bound
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    assert_same(used, expected)
    used.close()
    other.close()
    monkeypatch.undo()
    assert fill(kept(loaded, tmp_path, contexts, max_bytes=bound)).trouble is None
    assert len(folders(tmp_path)) == 1


def test_where_not_all_fits_the_first_windows_are_kept(loaded, expected, tmp_path):
    bound = int(1.5 * expected[0].n_bytes)
    windows = fill(kept(loaded, tmp_path, max_bytes=bound))
    assert "bytes are needed" in windows.trouble
    again = kept(loaded, tmp_path, max_bytes=bound)
    assert_same(again, expected)
    assert again.usage.n_tokens_cached == len(expected[0].norms)


def test_a_disk_that_is_nearly_full_is_left_alone(loaded, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("dmsae.activation_cache.RESERVE_BYTES", 2**60)
    windows = kept(loaded, tmp_path)
    assert "there is room for 0" in windows.trouble
    assert_same(windows, expected)
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_a_disk_that_fills_up_on_the_way_costs_only_the_cache(loaded, expected, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dmsae.activation_cache.save_file", full)
    windows = kept(loaded, tmp_path)
    assert windows.trouble is None
    assert_same(windows, expected)
    assert windows.trouble == "No space left on device"
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_cache_that_is_deleted_in_use_is_filled_again(loaded, expected, tmp_path):
    windows = fill(kept(loaded, tmp_path))
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert_same(windows, expected)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_of_two_that_want_the_same_window_one_harvests_and_the_other_reads(loaded, expected, tmp_path):
    both = [kept(loaded, tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=fill, args=(windows,)) for windows in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    harvested = [windows.usage.n_tokens_harvested for windows in both]
    assert sum(harvested) == both[0].source.n_tokens
    for windows in both:
        assert_same(windows, expected)


HARVEST = """
import sys, pathlib, torch
from tests.unit.test_activation_cache import kept, fill
from tests.tiny import tiny_loaded
torch.set_num_threads(int(sys.argv[2]))
windows = fill(kept(tiny_loaded(), pathlib.Path(sys.argv[1])))
print(windows.usage.n_tokens_harvested, windows.usage.n_tokens_cached)
"""


@pytest.mark.slow
def test_of_two_processes_each_window_is_harvested_by_one(loaded, expected, tmp_path):
    command = [sys.executable, "-c", HARVEST, str(tmp_path), str(torch.get_num_threads())]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [tuple(map(int, process.communicate(timeout=200)[0].split())) for process in both]
    n_tokens = sum(len(window.norms) for window in expected)
    assert sum(harvested for harvested, _ in counts) == n_tokens
    assert all(harvested + cached == n_tokens for harvested, cached in counts)
    windows = kept(loaded, tmp_path)
    assert_same(windows, expected)
    assert windows.usage.n_tokens_harvested == 0


def test_a_holder_that_stands_still_is_waited_for_only_so_long(loaded, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("dmsae.activation_cache.PATIENCE_S", 0.1)
    windows = kept(loaded, tmp_path)
    stuck = try_lock(tmp_path / windows_key(windows.source) / "0.lock", is_shared=False)
    assert_same(windows, expected)
    stuck.release()


LOCKED = """
import sys, pathlib
from dmsae.file_locks import try_lock
print(try_lock(pathlib.Path(sys.argv[1]), is_shared=False), flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_the_process_that_held_it(tmp_path):
    file = tmp_path / "lock"
    command = [sys.executable, "-c", LOCKED, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert "Lock" in holder.stdout.readline()
        assert try_lock(file, is_shared=True) is None
        holder.kill()
        holder.wait()
    assert try_lock(file, is_shared=False) is not None


def test_a_lock_is_shared_by_readers_and_deleted_by_nobody_while_one_holds_it(tmp_path):
    file = tmp_path / "lock"
    one, other = try_lock(file, is_shared=True), try_lock(file, is_shared=True)
    for lock in (one, other):
        with deleting(file) as is_free:
            assert not is_free
        lock.release()
    with deleting(file) as is_free:
        assert is_free
    assert not file.exists()


def test_counts_are_read_as_they_were_written_unless_somebody_changed_them(loaded, tmp_path):
    store = kept(loaded, tmp_path).store
    counts = [Count(5, Dropped(1, 2, 3)), Count(0, Dropped(0, 0, 9))]
    store.write_counts(1.5, counts)
    store.write_counts(1.5, counts[:1])
    assert store.read_counts(1.5) == counts
    assert store.read_counts(2.5) == []
    (file,) = tmp_path.rglob("counts-*")
    file.write_text(file.read_text().replace("9", "8"))
    assert store.read_counts(1.5) == []


def measured(loaded, folder, contexts=None, **settings):
    reader, contexts = harvester(loaded, **settings), contexts or make_contexts(40)
    kept = keep_batches(ActivationCache(folder, max_bytes=PLENTY), reader, contexts)
    batches = list(reader.harvest(contexts, kept=kept))
    kept.close()
    return batches


def test_batches_that_are_measured_on_are_kept_as_the_model_gave_them(loaded, tmp_path, monkeypatch):
    expected = list(harvester(loaded).harvest(make_contexts(40)))
    cold = measured(loaded, tmp_path)
    other = measured(loaded, tmp_path, layer=2)
    monkeypatch.setattr("dmsae.activations.run_lower", None)
    warm = measured(loaded, tmp_path)
    for batches in (cold, warm):
        assert len(batches) == len(expected)
        for one, another in zip(batches, expected, strict=True):
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, another, strict=True))
    assert not torch.equal(other[0].activations, expected[0].activations)
