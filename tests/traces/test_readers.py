"""Reading traces: real ones against exact oracles, made-up ones against slow code, damaged ones."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import subprocess
import sys
import zlib
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.traces.madeup import Event, event, events, slow, sqlite, text
from wanreport.records.files import FileError
from wanreport.traces import kineto, read
from wanreport.traces.command import run, summarised

SHARED = Path(__file__).resolve().parents[3] / "shared/traces"
KINETO = SHARED / "oracle_kineto.json"
NSIGHT = SHARED / "oracle_nsys.json"


def oracle(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def assert_holds(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """All that is wanted is found: whole numbers exactly, rates to the last digits of a float."""
    for key, value in wanted.items():
        assert key in found, key
        if isinstance(value, dict):
            assert_holds(found[key], value)
        elif isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=1e-12), key
        else:
            assert found[key] == value, key


def put(folder: Path, body: str | bytes | list[Event], name: str = "t.json") -> Path:
    """A file in a folder: of text or bytes, or of a bare list of events."""
    body = text(body, "bare") if isinstance(body, list) else body
    (folder / name).write_bytes(body.encode() if isinstance(body, str) else body)
    return folder / name


def checks(path: Path) -> dict[str, int]:
    return dict(read(path).quality[["check", "count"]].itertuples(index=False))


# Real traces -------------------------------------------------------------------------------------


@pytest.mark.skipif(not KINETO.exists(), reason="the shared traces are not here")
@pytest.mark.parametrize("name", oracle(KINETO))
def test_a_real_trace_of_torch_profiler(name: str) -> None:
    assert_holds(summarised(read(SHARED / name)), oracle(KINETO)[name])


def as_kinetos(wanted: dict[str, Any]) -> dict[str, Any]:
    """The other oracle's keys of a device, in the form of this one's."""
    found = dict(wanted)
    for way in [key for key, value in wanted.items() if isinstance(value, dict)]:
        names = {"p10": "p10_gbps", "p90": "p90_gbps"}
        found[way] = {names.get(k, k): v for k, v in wanted[way].items() if k != "pageable"}
        if wanted[way]["pageable"]:
            found[way]["memory"] = {"pageable": wanted[way]["pageable"]}
    return found


@pytest.mark.skipif(not NSIGHT.exists(), reason="the shared traces are not here")
@pytest.mark.parametrize("name", oracle(NSIGHT))
def test_a_real_export_of_nsight_systems(name: str) -> None:
    wanted, path = oracle(NSIGHT)[name], SHARED / f"{name}.sqlite"
    before = path.read_bytes()
    found = summarised(read(path))
    assert path.read_bytes() == before and not list(SHARED.glob("*-journal"))
    for device in {key for key in wanted if key.isdigit()}:
        own = found["devices"][device] if "devices" in found else found
        assert_holds(own, as_kinetos(wanted[device]))
    calls = wanted["runtime_memcpy"]
    keys = ("count", "total_ns", "gt10us", "gt100us")
    assert_holds(found["memcpy_calls"], {key: sum(call[key] for call in calls) for key in keys})
    kinds = {1: "Event Sync", 2: "Stream Wait Event", 3: "Stream Sync"}
    waits = {kinds[kind]: {"count": n, "total_ns": ns} for kind, n, ns in wanted["sync"]}
    assert_holds(found["sync_events"], waits)
    assert found["sync_events"].keys() == waits.keys()


# Made-up traces ----------------------------------------------------------------------------------

BASES = {"integer microseconds": 10**6, "since boot": 4_780_836_523_157_268,
         "since 1970": 1_771_962_523_157_268_217}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("form", ["new", "old", "bare"])
def test_a_made_up_trace(seed: int, base: int, form: str, tmp_path: Path) -> None:
    made = events(seed, base, hip=seed == 3)
    path = put(tmp_path, text(made, form))
    trace, wanted = read(path), slow(made)
    if form == "bare":
        wanted["device0"] = None
    assert_holds(summarised(trace), wanted)
    assert trace.facts["rank"] == (None if form == "bare" else 5)
    assert min(trace.events.start_ns) == base
    data = path.read_bytes()
    zipped = put(tmp_path, gzip.compress(data[:999]) + gzip.compress(data[999:]), "t.anything")
    assert read(zipped).events.equals(trace.events) and "cut" not in checks(zipped)


@pytest.mark.parametrize("seed", range(3))
def test_both_formats_of_the_same_events_say_the_same(seed: int, tmp_path: Path) -> None:
    made = events(seed)
    sqlite(tmp_path / "t.sqlite", made)
    wanted = slow(made)
    for key in ("events", "device0", "record_window_end"):  # an export has these not
        del wanted[key]
    assert_holds(summarised(read(tmp_path / "t.sqlite")), wanted)
    columns = ["start_ns", "end_ns", "kind", "direction", "memory", "bytes", "step", "correlation"]
    one, other = (
        read(path).events[columns].astype(str).sort_values(columns, ignore_index=True)
        for path in (put(tmp_path, text(made)), tmp_path / "t.sqlite")
    )
    assert one.equals(other)


def test_times_are_exact_where_floats_are_not(tmp_path: Path) -> None:
    one = '{"ph": "X", "cat": "kernel", "name": "k", "ts": 1661203462584767.123, "dur": 0.001}'
    other = '{"ph": "X", "cat": "kernel", "ts": 5e2, "dur": 1E-3}'
    found = read(put(tmp_path, f"[{one}, {other}]")).events
    assert [*found.start_ns] == [1661203462584767123, 500_000]
    assert [*(found.end_ns - found.start_ns)] == [1, 1]


def test_base_time_and_rank_of_other_forms(tmp_path: Path) -> None:
    body = '{"ph": "X", "cat": "kernel", "name": "k", "ts": 2.5, "dur": 1, "args": {"device": 1}}'
    whole = f'{{"traceEvents": [{body}], "baseTimeNanoseconds": 1700000000000000001}}'
    trace = read(put(tmp_path, whole, "run-rank_12.json"))
    assert trace.facts["rank"] == 12 and trace.events.start_ns[0] == 1700000000000002501
    assert [names["device"] for names, _ in trace.devices()] == [1]
    other = f'{{"distributedInfo":{{"rank":"3"}},"traceEvents":[{body}]}}'
    assert read(put(tmp_path, other)).facts["rank"] == 3


def test_tables_and_columns_of_an_export_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    sqlite(path, events(1))
    whole = summarised(read(path))
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE StringIds")
        database.execute("DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME")
        database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY DROP COLUMN bytes")
        database.execute("CREATE TABLE DIAGNOSTIC_EVENT (severity, text)")
        database.execute("INSERT INTO DIAGNOSTIC_EVENT VALUES (3, 'lost'), (1, 'fine')")
    found = summarised(read(path))
    assert found["memcpy_calls"] is None and found["kernels"] == whole["kernels"]
    assert found["HtoD"]["bytes"] == found["HtoD"]["count"] == 0 < found["HtoD"]["no_bytes"]
    assert checks(path)["profiler"] == 1
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY")
    assert "HtoD" not in summarised(read(path))


# Damaged and hostile files -----------------------------------------------------------------------


def ends_of(made: list[Event]) -> list[int]:
    """Where each event of a bare list ends."""
    lengths = [len(text([each], "bare")) for each in made]  # each with two brackets for ", "
    return [total - 1 for total in accumulate(lengths)]


def test_a_file_cut_at_any_place_gives_all_complete_events(tmp_path: Path) -> None:
    made = events(2)[:40]
    head, body = '{"traceEvents": ', text(made, "bare")
    ends = ends_of(made)
    places = {end + off for end in ends[::5] for off in (-9, -1, 0, 1, 2)}
    for place in sorted(place for place in places if place < len(body)):
        path = put(tmp_path, head + body[:place])
        trace, found = read(path), checks(path)
        assert trace.facts["events"] == sum(end <= place for end in ends), body[:place][-50:]
        assert found["cut"] == 1 and not trace.steps.complete.any()
        cats = {each["cat"] for each in made[: trace.facts["events"]]}
        assert cats & {"kernel", "gpu_memcpy", "gpu_memset"} or found["no GPU events"] == 1


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_a_gzip_file_cut_or_damaged_anywhere(part: float, tmp_path: Path) -> None:
    made = [each for seed in range(40) for each in events(seed, 9000 * seed)]
    data = gzip.compress(text(made, "bare").encode())
    cut = data[: int(part * len(data))]
    path = put(tmp_path, cut)
    inflated = len(zlib.decompressobj(31).decompress(cut))
    assert read(path).facts["events"] == sum(end <= inflated for end in ends_of(made))
    assert {"gzip cut", "cut"} <= checks(path).keys()
    broken = bytearray(data)
    broken[-6] ^= 1  # the length or the checksum, found at the very end
    path = put(tmp_path, bytes(broken))
    assert read(path).facts["events"] == len(made) and "corrupt" in checks(path)


def test_only_a_cut_after_all_gpu_events_leaves_steps_whole(tmp_path: Path) -> None:
    made = [*events(0), event("Trace", "PyTorch Profiler (0)", 1, 1)]
    trace = read(put(tmp_path, text(made, "bare")[:-40]))
    assert "cut" in set(trace.quality.check) and trace.steps.complete.any()


def test_a_cut_before_the_gpu_section_is_no_zero(tmp_path: Path) -> None:
    path = put(tmp_path, text(events(0)[:3], "bare")[:-1])
    found = summarised(read(path))
    assert found["devices"] == {} and found["memcpy_without_runtime_call"] is None
    assert found["memcpy_calls"] is None and len(found["incomplete_steps"]) == 3
    assert run([path], None) == 0


def test_lost_events_that_the_profiler_tells_of(tmp_path: Path) -> None:
    made = events(0)
    kept = [each for each in made if each.get("cat") not in ("kernel", "gpu_memcpy")]
    body = text(kept).replace('"end": 1', '"WARNING": ["Exceeded max GPU buffer count 33"]')
    path = put(tmp_path, body)
    trace = read(path)
    assert trace.quality.bad[trace.quality.check == "dropped"].all()
    assert {"dropped", "launches without GPU event", "incomplete steps"} <= checks(path).keys()


GOOD = '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 9, "dur": 2}'


def kernel(key: str, value: str) -> str:
    return re.sub(rf'"{key}": [^,}}]+', f'"{key}": {value}', GOOD)


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        ('{"ph": "X", "args": {"a": ' + "[" * 10**5 + "]" * 10**5 + "}}", "skipped"),
        ('{"ph": "X", "name": "a"b"c", "ts": 1}', "skipped"),
        ("7", "skipped"), ("null", "skipped"), (kernel("name", "[]"), "skipped"),
        (kernel("ts", "9" * 5000), "skipped"), (kernel("dur", "-3"), "times"),
        (kernel("ts", "NaN"), "times"), (kernel("dur", "NaN"), "times"),
        (kernel("dur", "Infinity"), "times"), (kernel("dur", "1e300"), "times"),
        (kernel("ts", "null"), "times"), (kernel("ts", "[1]"), "times"),
        (kernel("dur", '"x"'), "times"), (kernel("ts", str(10**30)), "times"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_one_bad_event_costs_no_other(bad: str, check: str, last: bool, tmp_path: Path) -> None:
    body = [GOOD, bad] if last else [GOOD, bad, GOOD]
    path = put(tmp_path, '{"traceEvents": [' + ",\n".join(body) + "]}")
    assert len(read(path).events) == len(body) - 1
    assert checks(path)[check] == 1


def test_odd_values_of_other_keys_do_no_harm(tmp_path: Path) -> None:
    args = {"device": 2**70, "stream": "x", "correlation": 2**65, "bytes": -5}
    odd = {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "pid": "a",
           "tid": 1, "ts": 1, "dur": 1, "args": args}  # fmt: skip
    path = put(tmp_path, json.dumps([odd, odd | {"name": "\ud800"}]) + "\0\0")
    trace = read(path)
    assert len(trace.events) == 2 and trace.events.bytes.isna().all()
    assert checks(path)["copies without bytes"] == 2
    latin = GOOD.replace('"k"', '"\xff\xfe"').join("[]").encode("latin-1")
    assert len(read(put(tmp_path, latin)).events) == 1


def test_correlations_used_twice_are_told_of_and_the_first_call_counts(tmp_path: Path) -> None:
    call = event("cuda_runtime", "cudaMemcpy", 5, 9, correlation=3)
    later = event("cuda_driver", "cuMemcpyHtoDAsync", 7, 1, correlation=3)
    copy = event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 9, 9, correlation=3, device=0)
    call["tid"] = later["tid"] = 1
    path = put(tmp_path, [later, copy, call])
    trace = read(path)
    assert checks(path)["correlations used twice"] == 1
    assert trace.events.name[trace.events.call[1]] == "cudaMemcpy"
    assert summarised(trace)["memcpy_calls"]["count"] == 1  # the other is made on the way


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b'{"a": 1}', b"[1, 2]", b"[" * 10**6, b"{" * 10**6, b"SQLite format 3\0x"],
    ids=range(7),
)  # fmt: skip
def test_what_is_no_trace_is_named(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"some\.json"):
        read(put(tmp_path, data, "some.json"))


def test_a_missing_file_and_a_database_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="none"):
        read(tmp_path / "none.json")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE a (b)")
    with pytest.raises(FileError, match=r"other\.db"):
        read(tmp_path / "other.db")


BOMBS = {"spaces": ("[", " " * 1000), "nothing": ("", "\0" * 1000), "a string": ('["', "a" * 1000),
         "depth": ("[", "[" * 1000), "no use": ("[", '{"ph": "f", "cat": "ac2g", "ts": 1},\n' * 25),
         "kernels": ("[", f"{GOOD},\n" * 12)}  # fmt: skip
PEAK = """
import re, sys
from wanreport.records.files import FileError
from wanreport.traces import read
from wanreport.traces import events, kineto
kineto.MOST_EVENTS = 300_000
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")
before = peak()
try:
    print(*read(sys.argv[1]).quality.check, sep=",")
except FileError as error:
    print("FileError")
print(peak() - before)
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_gzip_bomb_takes_little_memory(bomb: str, tmp_path: Path) -> None:
    head, body = BOMBS[bomb]
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head.encode())
        for _ in range(120):
            file.write(body.encode() * 1000)  # 120 MB in all
    done = subprocess.check_output([sys.executable, "-c", PEAK, path], text=True)
    said, peak = done.split("\n")[:2]
    assert float(peak) < 120, said
    assert {"kernels": "too many events", "no use": "no GPU events"}.get(bomb, "FileError") in said


def test_more_events_than_may_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto, "MOST_EVENTS", 10)
    monkeypatch.setattr(kineto, "BATCH", 100)
    assert checks(put(tmp_path, events(0)))["too many events"] == 1


# The command -------------------------------------------------------------------------------------


def test_the_command_writes_all_or_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, good, bad = tmp_path / "out.json", put(tmp_path, events(0)), put(tmp_path, "x", "b.json")
    with pytest.raises(FileError, match=r"b\.json"):
        run([good, bad], out)
    assert not out.exists() and not capsys.readouterr().out
    assert run([good], out) == 0
    found = json.loads(out.read_text())
    assert_holds(found[good.name], slow(events(0)) | {"device0": None})
    assert "HtoD" in capsys.readouterr().out
