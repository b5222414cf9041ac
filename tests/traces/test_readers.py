"""Reading traces: real ones against exact oracles, made-up ones against slow code, damaged ones."""

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

from tests.traces.madeup import PINNED, Event, event, events, put, slow, sqlite, text, ticks
from wanreport.records.files import FileError
from wanreport.traces import read
from wanreport.traces.command import run, summarised
from wanreport.traces.copies import summary

SHARED = Path(__file__).resolve().parents[3] / "shared/traces"
ORACLES = [SHARED / "oracle_kineto.json", SHARED / "oracle_nsys.json"]
KINETO, NSIGHT = (json.loads(at.read_text()) if at.exists() else {} for at in ORACLES)


def assert_holds(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """All that is wanted is found: whole numbers exactly, rates to the last digits of a float."""
    for key, value in wanted.items():
        assert key in found, key
        if isinstance(value, dict):
            assert_holds(found[key], value)
        else:
            same = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            assert found[key] == same, key


def checks(path: Path) -> dict[str, int]:
    return dict(read(path).quality[["check", "count"]].itertuples(index=False))


@pytest.mark.parametrize("name", KINETO)
def test_a_real_trace_of_torch_profiler(name: str) -> None:
    assert_holds(summarised(read(SHARED / name)), KINETO[name])


@pytest.mark.parametrize("name", NSIGHT)
def test_a_real_export_of_nsight_systems(name: str) -> None:
    wanted, path = NSIGHT[name], SHARED / f"{name}.sqlite"
    before, found = path.read_bytes(), summarised(read(path))
    assert path.read_bytes() == before and not list(SHARED.glob("*-journal"))
    for device in filter(str.isdigit, wanted):
        own = found["devices"][device] if "devices" in found else found
        for value in wanted[device].values():
            if isinstance(value, dict):  # of a direction, with other names than the other oracle's
                value |= {f"{p}_gbps": value.pop(p) for p in ("p10", "p90") if p in value}
                pageable = value.pop("pageable")
                value |= {"memory": {"pageable": pageable}} if pageable else {}
        assert_holds(own, wanted[device])
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
    path, bare = put(tmp_path, text(made, form)), form == "bare"
    trace = read(path)
    assert_holds(summarised(trace), slow(made) | ({"device0": None} if bare else {}))
    nccl, compute, down = (ticks([e for e in made if re.match(names, e["name"])])
                           for names in ("nccl", "gemm|void", "Memcpy HtoD"))  # fmt: skip
    wanted = {"copies": down, "hidden": down & compute, "hidden_alone": down & compute - nccl,
              "exposed_alone": down - compute - nccl}  # fmt: skip
    row = summary([trace]).iloc[0]
    assert {name: row[f"{name}_ns"] for name in wanted} == {k: len(v) for k, v in wanted.items()}
    assert trace.facts["rank"] == (None if bare else 5)
    assert min(trace.events.start_ns) == base
    names = trace.events.name
    assert [*names.cat.categories] == [*dict.fromkeys(names)]  # whatever the hash seed
    data = path.read_bytes()
    zipped = put(tmp_path, gzip.compress(data[:999]) + gzip.compress(data[999:]), "t.anything")
    assert read(zipped).events.equals(trace.events) and "cut" not in checks(zipped)


@pytest.mark.parametrize("seed", range(2))
def test_both_formats_of_the_same_events_say_the_same(seed: int, tmp_path: Path) -> None:
    made = events(seed)
    paths = sqlite(tmp_path / "t.sqlite", made), put(tmp_path, text(made))
    lacking = ("events", "device0", "record_window_end")  # an export has these not
    wanted = {key: value for key, value in slow(made).items() if key not in lacking}
    assert_holds(summarised(read(paths[0])), wanted)
    columns = ["start_ns", "end_ns", "kind", "direction", "memory", "bytes", "step", "correlation"]
    one, other = (read(path).events[columns].astype(str) for path in paths)
    assert one.sort_values(columns, ignore_index=True).equals(
        other.sort_values(columns, ignore_index=True))  # fmt: skip


GOOD = '{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 9, "dur": 2}'


def kernel(key: str, value: str) -> str:
    return re.sub(rf'"{key}": [^,}}]+', f'"{key}": {value}', GOOD)


def test_times_are_exact_where_floats_are_not(tmp_path: Path) -> None:
    some = [kernel("ts", "1661203462584767.123"), kernel("ts", "5e2"), kernel("dur", "1E-3"),
            kernel("dur", "1.5e6"), kernel("ts", "1661203462584767.25")]  # fmt: skip
    ends = [*[some[0]] * 9999, *some]  # the last batch of a file is read in another way
    for each in (some, ends):
        found = read(put(tmp_path, f"[{', '.join(each)}]")).events[-5:]
        assert [*found.start_ns] == [1661203462584767123, 500_000, 9000, 9000, 1661203462584767250]
        assert [*found.ns] == [2000, 2000, 1, 1_500_000_000, 2000]


def test_base_time_and_rank_of_other_forms(tmp_path: Path) -> None:
    body = GOOD.replace("9,", "2.5,").replace("}", ', "args": {"device": 1}}')
    whole = f'{{"traceEvents": [{body}], "baseTimeNanoseconds": 1700000000000000001}}'
    trace = read(put(tmp_path, whole, "run-rank_12.json"))
    assert trace.facts["rank"] == 12 and trace.events.start_ns[0] == 1700000000000002501
    assert set(trace.events.device) == {1}
    other = f'{{"distributedInfo":{{"rank":"3"}},"traceEvents":[{body}]}}'
    assert read(put(tmp_path, other)).facts["rank"] == 3


def test_tables_and_columns_of_an_export_may_be_missing(tmp_path: Path) -> None:
    path = sqlite(tmp_path / "t.sqlite", events(1))
    whole = summarised(read(path))
    with sqlite3.connect(path) as database:
        database.executescript("""
            DROP TABLE StringIds; DROP TABLE CUPTI_ACTIVITY_KIND_RUNTIME;
            ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY DROP COLUMN bytes;
            CREATE TABLE DIAGNOSTIC_EVENT (severity, text);
            INSERT INTO DIAGNOSTIC_EVENT VALUES (3, 'lost'), (1, 'fine');
        """)
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
    head, body, ends = '{"traceEvents": ', text(made, "bare"), ends_of(made)
    for place in (end + off for end in ends[::5] for off in (-1, 0, 1)):
        trace = read(put(tmp_path, head + body[:place]))
        complete, told = made[: sum(end <= place for end in ends)], set(trace.quality.check)
        assert trace.facts["events"] == len(complete), body[:place][-50:]
        assert "cut" in told and not trace.steps.complete.any()
        cats = {each["cat"] for each in complete}
        assert cats & {"kernel", "gpu_memcpy", "gpu_memset"} or "no GPU events" in told


@pytest.mark.parametrize("part", [0.2, 0.999])
def test_a_gzip_file_cut_or_damaged_anywhere(part: float, tmp_path: Path) -> None:
    made = [each for seed in range(40) for each in events(seed, 9000 * seed)]
    data = gzip.compress(text(made, "bare").encode())
    cut = data[: int(part * len(data))]
    path, inflated = put(tmp_path, cut), len(zlib.decompressobj(31).decompress(cut))
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
    quality = read(put(tmp_path, body)).quality
    lost = {"dropped", "launches without GPU event", "incomplete steps"}
    assert lost <= set(quality.check[quality.bad])


@pytest.mark.parametrize(("bad", "check"), [
    ('{"ph": "X", "args": {"a": ' + "[" * 10**5 + "]" * 10**5 + "}}", "skipped"),
    ('{"ph": "X", "name": "a"b"c", "ts": 1}', "skipped"), ("7", "skipped"),
    (kernel("name", "[]"), "skipped"), (kernel("ts", "9" * 5000), "skipped"),
    *[(kernel("dur", value), "times") for value in ("-3", "NaN", "Infinity", "1e300", '"x"')],
    *[(kernel("ts", value), "times") for value in ("NaN", "null", "[1]", str(10**30))],
])  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_one_bad_event_costs_no_other(bad: str, check: str, last: bool, tmp_path: Path) -> None:
    body = [GOOD, bad] if last else [GOOD, bad, GOOD]
    trace = read(put(tmp_path, '{"traceEvents": [' + ",\n".join(body) + "]}"))
    told = trace.quality.set_index("check")["count"]
    assert len(trace.events) == len(body) - 1 and told[check] == 1


def test_odd_values_of_other_keys_do_no_harm(tmp_path: Path) -> None:
    args = {"device": 2**70, "stream": "x", "correlation": 2**65, "bytes": -5}
    odd = event("gpu_memcpy", PINNED, 1, 1) | {"ts": 1, "dur": 1, "pid": "a", "args": args}
    path = put(tmp_path, json.dumps([odd, odd | {"name": "\ud800"}]) + "\0\0")
    assert read(path).events.bytes.isna().sum() == 2 == checks(path)["copies without bytes"]
    latin = GOOD.replace('"k"', '"\xff\xfe"').join("[]").encode("latin-1")
    assert len(read(put(tmp_path, latin)).events) == 1


def test_correlations_used_twice_are_told_of_and_the_first_call_counts(tmp_path: Path) -> None:
    call = event("cuda_runtime", "cudaMemcpy", 5, 9, correlation=3)
    later = event("cuda_driver", "cuMemcpyHtoDAsync", 7, 1, correlation=3)
    copy = event("gpu_memcpy", PINNED, 9, 9, correlation=3, device=0)
    path = put(tmp_path, [later | {"tid": 1}, copy, call | {"tid": 1}])
    trace = read(path)
    assert checks(path)["correlations used twice"] == 1
    assert trace.events.name[trace.events.call[1]] == "cudaMemcpy"
    assert summarised(trace)["memcpy_calls"]["count"] == 1  # the other is made on the way


def test_what_is_no_trace_is_named(tmp_path: Path) -> None:
    for number, data in enumerate([b"", b"hello", b'{"a": 1}', b"[1, 2]", b"[" * 10**6,
                                   b"{" * 10**6, b"SQLite format 3\0x"]):  # fmt: skip
        put(tmp_path, data, f"{number}.json")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE a (b)")
    for path in [*tmp_path.glob("*"), tmp_path / "none.json"]:
        with pytest.raises(FileError, match=path.name):
            read(path)


BOMBS = {"spaces": ("[", " " * 1000, "FileError"), "nothing": ("", "\0" * 1000, "FileError"),
         "a string": ('["', "a" * 1000, "FileError"), "depth": ("[", "[" * 1000, "FileError"),
         "no use": ("[", '{"ph": "f", "cat": "ac2g", "ts": 1},\n' * 25, "no GPU events"),
         "kernels": ("[", f"{GOOD},\n" * 12, "too many events")}  # fmt: skip
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
    for name, (head, body, _) in BOMBS.items():
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
            file.write(head.encode())
            for _ in range(120):
                file.write(body.encode() * 1000)  # 120 MB in all
    paths = [tmp_path / name for name in BOMBS]
    done = subprocess.check_output([sys.executable, "-c", PEAK, *paths], text=True)
    for (name, bomb), line in zip(BOMBS.items(), done.splitlines(), strict=True):
        peak, said = line.split(maxsplit=1)
        assert float(peak) < 120 and bomb[2] in said, name


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
