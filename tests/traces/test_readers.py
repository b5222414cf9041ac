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

from tests.traces.madeup import Event, event, events, slow, sqlite, text, ticks
from wanreport.records.files import FileError
from wanreport.traces import kineto, read
from wanreport.traces.command import run, summarised
from wanreport.traces.copies import summary

SHARED = Path(__file__).resolve().parents[3] / "shared/traces"
ORACLES = [SHARED / "oracle_kineto.json", SHARED / "oracle_nsys.json"]
KINETO, NSIGHT = (json.loads(at.read_text()) if at.exists() else {} for at in ORACLES)
there = pytest.mark.skipif(not (KINETO and NSIGHT), reason="the shared traces are not here")


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


@there
@pytest.mark.parametrize("name", KINETO)
def test_a_real_trace_of_torch_profiler(name: str) -> None:
    assert_holds(summarised(read(SHARED / name)), KINETO[name])


@there
@pytest.mark.parametrize("name", NSIGHT)
def test_a_real_export_of_nsight_systems(name: str) -> None:
    wanted, path = NSIGHT[name], SHARED / f"{name}.sqlite"
    before = path.read_bytes()
    found = summarised(read(path))
    assert path.read_bytes() == before and not list(SHARED.glob("*-journal"))
    for device in filter(str.isdigit, wanted):
        own = found["devices"][device] if "devices" in found else found
        for key, value in wanted[device].items():
            if isinstance(value, dict):  # of a direction, with other names than the other oracle's
                pageable = value.pop("pageable")
                value = {
                    {"p10": "p10_gbps", "p90": "p90_gbps"}.get(k, k): v for k, v in value.items()
                }
                value |= {"memory": {"pageable": pageable}} if pageable else {}
            assert_holds(own, {key: value})
    keys = ("count", "total_ns", "gt10us", "gt100us")
    calls = {key: sum(call[key] for call in wanted["runtime_memcpy"]) for key in keys}
    assert_holds(found["memcpy_calls"], calls)
    kinds = {1: "Event Sync", 2: "Stream Wait Event", 3: "Stream Sync"}
    waits = {kinds[kind]: {"count": n, "total_ns": ns} for kind, n, ns in wanted["sync"]}
    assert_holds(found["sync_events"], waits)
    assert found["sync_events"].keys() == waits.keys()


# Made-up traces ----------------------------------------------------------------------------------

BASES = {"integer microseconds": 10**6, "since boot": 4_780_836_523_157_268,
         "since 1970": 1_771_962_523_157_268_217}  # fmt: skip


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize(("seed", "form"), [(0, "new"), (1, "old"), (2, "bare"), (3, "new")])
def test_a_made_up_trace(seed: int, base: int, form: str, tmp_path: Path) -> None:
    made = events(seed, base, hip=seed == 3)
    path = put(tmp_path, text(made, form))
    trace, wanted = read(path), slow(made)
    if form == "bare":
        wanted["device0"] = None
    assert_holds(summarised(trace), wanted)
    nccl, compute, down = (ticks([e for e in made if re.match(names, e["name"])])
                           for names in ("nccl", "gemm|void", "Memcpy HtoD"))  # fmt: skip
    row = summary([trace]).iloc[0]
    assert (row.copies_ns, row.hidden_ns) == (len(down), len(down & compute))
    assert row.hidden_alone_ns == len(down & compute - nccl)
    assert row.exposed_alone_ns == len(down - compute - nccl)
    assert trace.facts["rank"] == (None if form == "bare" else 5)
    assert min(trace.events.start_ns) == base
    data = path.read_bytes()
    zipped = put(tmp_path, gzip.compress(data[:999]) + gzip.compress(data[999:]), "t.anything")
    assert read(zipped).events.equals(trace.events) and "cut" not in checks(zipped)


@pytest.mark.parametrize("seed", range(2))
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


GOOD = '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 9, "dur": 2}'


def kernel(key: str, value: str) -> str:
    return re.sub(rf'"{key}": [^,}}]+', f'"{key}": {value}', GOOD)


def test_times_are_exact_where_floats_are_not(tmp_path: Path) -> None:
    some = [kernel("ts", "1661203462584767.123"), kernel("ts", "5e2"), kernel("dur", "1E-3")]
    found = read(put(tmp_path, f"[{', '.join(some)}]")).events
    assert [*found.start_ns] == [1661203462584767123, 500_000, 9000]
    assert [*found.ns] == [2000, 2000, 1]


def test_base_time_and_rank_of_other_forms(tmp_path: Path) -> None:
    body = GOOD.replace("9,", "2.5,").replace("}", ', "args": {"device": 1}}')
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
        for change in (
            "DROP TABLE StringIds", "DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME",
            "ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY DROP COLUMN bytes",
            "CREATE TABLE DIAGNOSTIC_EVENT (severity, text)",
            "INSERT INTO DIAGNOSTIC_EVENT VALUES (3, 'lost'), (1, 'fine')",
        ):  # fmt: skip
            database.execute(change)
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
    made = events(2)[:20]
    head, body = '{"traceEvents": ', text(made, "bare")
    ends = ends_of(made)
    places = {end + off for end in ends[::5] for off in (-1, 0, 1)}
    for place in sorted(place for place in places if place < len(body)):
        trace = read(put(tmp_path, head + body[:place]))
        assert trace.facts["events"] == sum(end <= place for end in ends), body[:place][-50:]
        told = set(trace.quality.check)
        assert "cut" in told and not trace.steps.complete.any()
        cats = {each["cat"] for each in made[: trace.facts["events"]]}
        assert cats & {"kernel", "gpu_memcpy", "gpu_memset"} or "no GPU events" in told


@pytest.mark.parametrize("part", [0.2, 0.999])
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
    trace = read(put(tmp_path, bytes(broken)))
    assert trace.facts["events"] == len(made) and "corrupt" in set(trace.quality.check)
    assert not trace.steps.complete.any()


def test_what_a_cut_leaves_out_is_no_zero(tmp_path: Path) -> None:
    path = put(tmp_path, text(events(0)[:3], "bare")[:-1])
    found = summarised(read(path))
    assert found["devices"] == {} and found["memcpy_without_runtime_call"] is None
    assert found["memcpy_calls"] is None and len(found["incomplete_steps"]) == 3
    assert run([path], None) == 0
    made = [*events(0), event("Trace", "PyTorch Profiler (0)", 1, 1)]  # follows all of the GPU's
    trace = read(put(tmp_path, text(made, "bare")[:-40]))
    assert "cut" in set(trace.quality.check) and trace.steps.complete.any()


def test_lost_events_that_the_profiler_tells_of(tmp_path: Path) -> None:
    kept = [each for each in events(0) if each.get("cat") not in ("kernel", "gpu_memcpy")]
    body = text(kept).replace('"end": 1', '"WARNING": ["Exceeded max GPU buffer count 33"]')
    trace = read(put(tmp_path, body))
    bad = set(trace.quality.check[trace.quality.bad])
    assert {"dropped", "launches without GPU event", "incomplete steps"} <= bad


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        ('{"ph": "X", "args": {"a": ' + "[" * 10**5 + "]" * 10**5 + "}}", "skipped"),
        ('{"ph": "X", "name": "a"b"c", "ts": 1}', "skipped"), ("7", "skipped"),
        (kernel("name", "[]"), "skipped"), (kernel("ts", "9" * 5000), "skipped"),
        *[(kernel("dur", value), "times") for value in ("-3", "NaN", "Infinity", "1e300", '"x"')],
        *[(kernel("ts", value), "times") for value in ("NaN", "null", "[1]", str(10**30))],
    ],
)  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_one_bad_event_costs_no_other(bad: str, check: str, last: bool, tmp_path: Path) -> None:
    body = [GOOD, bad] if last else [GOOD, bad, GOOD]
    trace = read(put(tmp_path, '{"traceEvents": [' + ",\n".join(body) + "]}"))
    told = trace.quality.set_index("check")["count"]
    assert len(trace.events) == len(body) - 1 and told[check] == 1


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


def test_what_is_no_trace_is_named(tmp_path: Path) -> None:
    for number, data in enumerate([b"", b"hello", b'{"a": 1}', b"[1, 2]", b"[" * 10**6,
                                   b"{" * 10**6, b"SQLite format 3\0x"]):  # fmt: skip
        with pytest.raises(FileError, match=f"{number}.json"):
            read(put(tmp_path, data, f"{number}.json"))
    with pytest.raises(FileError, match="none"):
        read(tmp_path / "none.json")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE a (b)")
    with pytest.raises(FileError, match=r"other\.db"):
        read(tmp_path / "other.db")


BOMBS = {"spaces": ("[", " " * 1000), "nothing": ("", "\0" * 1000), "a string": ('["', "a" * 1000),
         "depth": ("[", "[" * 1000), "no use": ("[", '{"ph": "f", "cat": "ac2g", "ts": 1},\n' * 25),
         "kernels": ("[", f"{GOOD},\n" * 12)}  # fmt: skip
SAY = {"kernels": "too many events", "no use": "no GPU events"}
PEAK = """
import re, sys
from wanreport.records.files import FileError
from wanreport.traces import events, kineto, read
kineto.MOST_EVENTS = 300_000
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    try:
        said = ",".join(read(path).quality.check)
    except FileError as error:
        said = "FileError"
    print(peak() - before, said)
"""


def test_gzip_bombs_take_little_memory(tmp_path: Path) -> None:
    for name, (head, body) in BOMBS.items():
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
            file.write(head.encode())
            for _ in range(120):
                file.write(body.encode() * 1000)  # 120 MB in all
    paths = [tmp_path / name for name in BOMBS]
    done = subprocess.check_output([sys.executable, "-c", PEAK, *paths], text=True)
    for name, line in zip(BOMBS, done.splitlines(), strict=True):
        peak, said = line.split(maxsplit=1)
        assert float(peak) < 120 and SAY.get(name, "FileError") in said, name


def test_more_events_than_may_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto, "MOST_EVENTS", 10)
    monkeypatch.setattr(kineto, "BATCH", 100)
    assert checks(put(tmp_path, events(0)))["too many events"] == 1


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
