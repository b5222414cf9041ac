"""One rank of one job: builds the model, runs the iterations, writes what it saw.

On GPUs torchrun starts it, on CPU a fork server (:mod:`wanreport.measure.start`).
"""

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wanreport.engines import ENGINES, Counters, Engine, Shape, Stream
from wanreport.jobs.job import Job
from wanreport.jobs.schedule import sampled_steps, switch_step
from wanreport.measure.fit import blocks_in_budget, measure_link, model_of, require_host_memory
from wanreport.measure.machine import nodes
from wanreport.measure.profile import SwitchProfile
from wanreport.measure.ranks import Unsupported, die_with_parent, outcome
from wanreport.measure.sensors import Sensors
from wanreport.model import denoise
from wanreport.model.clock import StepClock, peaks, reset_peaks, sha256
from wanreport.model.expert import EXPERTS, Expert, Segments
from wanreport.model.ulysses import SequenceParallel, cfg_groups
from wanreport.model.weights import HostStore, Source
from wanreport.planner.probe import Probe
from wanreport.records.record import naming, replace_file

# A tiny video: few tokens, and 27 of them, which no world size of the baseline divides.
TINY_VIDEO = {"height": 48, "width": 48, "num_frames": 9}
TINY_TEXT_TOKENS = 8


class Rank:
    """One rank's work on the job of ``spec``; progress and traces go to the folder ``out``."""

    def __init__(self, spec: dict[str, Any], out: Path, rank: int, world_size: int) -> None:
        self.spec, self.job = spec, (job := Job(**spec["job"]))
        self.out, self.rank, self.world_size = out, rank, world_size
        self.tiny = tiny = job.scale == "tiny"
        self.beside = world_size // nodes()  # ranks of one host, which follow one another
        self.device = torch.device("cpu" if tiny else f"cuda:{rank % self.beside}")
        self.video = TINY_VIDEO if tiny else {key: getattr(job, key) for key in TINY_VIDEO}
        self.checkpoint = Path(job.checkpoint) if job.checkpoint else None
        self.cold_start_s: float | None = None

    def run(self) -> dict[str, Any]:
        job, device = self.job, self.device
        if not self.tiny and (seen := torch.cuda.device_count()) < self.beside:
            hint = "install a torch that fits the driver (nvidia-smi names its CUDA version)"
            raise Unsupported(f"torch sees {seen} of {self.beside} GPUs", hint)
        connect(device, self.out, self.rank, self.world_size, job.timeout_s)
        self.settings, source, configs = model_of(job)
        config, dtype = configs[EXPERTS[0]], getattr(torch, job.dtype)
        group, pair = cfg_groups() if job.enable_cfg_parallel else (dist.group.WORLD, None)
        parallel = SequenceParallel(group)
        host = dist.group.WORLD if nodes() == 1 else dist.new_subgroups(self.beside)[0]
        segments = Segments.compiled() if job.compile else Segments()

        def make(name: str, **changes: Any) -> Expert:
            expert = Expert(name, configs[name] | changes, dtype)
            expert.parallel, expert.segments = parallel, segments
            return expert

        self.experts = {name: make(name) for name in EXPERTS}
        prefetch, packed = job.prefetch(config["num_layers"]), job.transfer == "packed"
        # The plan chooses the other settings.
        engine = Stream(transfer="packed") if packed else ENGINES[job.engine](prefetch=prefetch)
        self.store = store = store_for(engine, self.experts, source, device, host)
        layouts = list(store.layouts.values())
        require_host_memory(engine, layouts, self.world_size, self.spec["host_free"],
                            rehearsal=self.tiny, nodes=nodes())  # fmt: skip
        room = blocks_in_budget(job, layouts) if job.engine == "stream" else 0
        self.say("link")
        link = measure_link(device, dist.group.WORLD)
        self.guidance = self._guidance(config["text_dim"], dtype, pair)
        vae = denoise.TINY_VAE if self.tiny else denoise.VAE
        self.vae = job.decode and self.rank == 0 and denoise.make_vae(
            vae, self.checkpoint, device, job.seed)  # fmt: skip
        self.say("weights")
        self.started = time.perf_counter()
        used: dict[str, Any] = {"prefetch": prefetch, "counters_derived": engine.counters_derived}
        if job.engine == "stream":
            store.buffer(EXPERTS[0], None)  # filled now, before the probe times anything
            self.say("plan")
            probe = Probe(lambda blocks: make(EXPERTS[0], num_layers=blocks), store,
                          dist.group.WORLD, self._noise(), self.guidance)  # fmt: skip
            used["plan"], settings = probe.plan(link, job.num_inference_steps, room)
            del probe  # and the noise
            torch.cuda.empty_cache()  # what the probe held is not the job's
            engine = Stream(settings)
        self.engine = engine
        machine: dict[str, Any] = {"link": link}
        if not self.tiny:  # what can be allocated; the driver counts its own share too
            machine["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        sizes = zip(denoise.latent_shape(**self.video)[2:], config["patch_size"], strict=True)
        model = self.settings | self.video | {
            "num_layers": config["num_layers"],
            "num_heads": config["num_attention_heads"],
            "head_dim": config["attention_head_dim"],
            "tokens": math.prod(size // patch for size, patch in sizes),
            "weights": "checkpoint" if self.checkpoint else "random",
            "prompt_embeds": "encoded" if self.checkpoint else "random",
            "block_bytes": store.layouts[EXPERTS[0], 0].nbytes,
            "expert_bytes": store.nbytes(EXPERTS[0]),
        }  # fmt: skip
        result: dict[str, Any] = {"model": model, "machine": machine, "engine": used,
                                  "software": software(), "iterations": []}  # fmt: skip
        if self.spec["plan_only"]:
            return result
        engine.attach(self.experts, store, device, dist.group.WORLD)
        kinds = ["warmup"] * job.warmup_iterations + ["clean"] * job.clean_iterations
        kinds += ["profiled"] * job.profile
        result["iterations"] = [self._iteration(*each) for each in enumerate(kinds)]
        result |= {"schedule": self.schedule, "cold_start_s": self.cold_start_s,
                   "timeline": engine.mover.timeline.rows()}  # fmt: skip
        engine.detach()
        store.close()
        return result

    def _noise(self) -> torch.Tensor:
        """The latents that denoising starts from; a plan is made on them too."""
        generator = torch.Generator().manual_seed(self.job.seed)
        return torch.randn(denoise.latent_shape(**self.video), generator=generator).to(self.device)

    def _guidance(self, text_dim: int, dtype: torch.dtype, pair: Any) -> denoise.Guidance:
        job = self.job
        if self.checkpoint:
            prompts = [job.prompt] + [job.negative_prompt] * job.cfg
            texts = denoise.encode_prompts(self.checkpoint, prompts, self.device)
        else:
            size = 1, TINY_TEXT_TOKENS if self.tiny else denoise.TEXT_TOKENS, text_dim
            generator = torch.Generator().manual_seed(job.seed + 1)
            texts = [torch.randn(size, generator=generator) for _ in range(1 + job.cfg)]
        cond, *rest = (text.to(self.device, dtype) for text in texts)
        scales = (self.settings[key] for key in ("guidance_scale", "guidance_scale_2"))
        uncond = rest[0] if rest else None
        return denoise.Guidance(cond, uncond, dict(zip(EXPERTS, scales, strict=True)), pair)

    def _iteration(self, number: int, kind: str) -> dict[str, Any]:
        job, engine, device, profile = self.job, self.engine, self.device, None
        steps: list[dict[str, Any]] = []
        scheduler = denoise.make_scheduler(self.settings["flow_shift"], self.checkpoint)
        scheduler.set_timesteps(job.num_inference_steps)
        times, ratio = scheduler.timesteps.double().tolist(), self.settings["boundary_ratio"]
        scale = scheduler.config.num_train_timesteps
        switch = switch_step(times, ratio, scale)
        self.schedule = {"timesteps": times, "switch_step": switch}
        run = sampled_steps(len(times), switch, job.sampled_steps)
        if kind == "warmup" and (self.tiny or len(run) < len(times)):
            run = [index for index in run if index in (0, switch)]  # each expert once
        if kind == "profiled":
            path = self.out / "traces" / f"rank{self.rank}.json.gz"
            profile = SwitchProfile(path, run, switch, engine, timeline=self.rank == 0)
            if self.tiny:  # a page shows no more of it than what the profiler watches
                run = [index for index in run if index in (profile.begin, *profile.watched)]
        clock = StepClock(device)

        @contextmanager
        def on_step(index: int, expert: str, timestep: float) -> Iterator[None]:
            self.say(f"{kind} iteration {number}, step {index + 1} of {len(times)}")
            before = engine.mover.counters.h2d_bytes
            with profile.step(index) if profile else nullcontext(), clock.step():
                yield
            moved = engine.mover.counters.h2d_bytes - before
            steps.append(dict(index=index, expert=expert, timestep=timestep, h2d_bytes=moved))
            if self.cold_start_s is None:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                self.cold_start_s = time.perf_counter() - self.started

        latents, sensors = self._noise(), Sensors(device)
        dist.barrier()
        reset_peaks(device)
        before, begun = engine.mover.counters + Counters(), time.perf_counter()
        with sensors:
            latents = denoise.denoise(
                self.experts, engine, scheduler, latents, self.guidance,
                steps=len(times), boundary=None if ratio is None else ratio * scale,
                on_step=on_step, run=run,
            )  # fmt: skip
            for step, seconds in zip(steps, clock.seconds(), strict=True):
                step["seconds"] = seconds
        memory = peaks(device, self.store.pinned_bytes)
        decode_s = frames = None
        if self.vae:
            self.say("decode")
            clock = StepClock(device)
            with clock.step():
                frames = denoise.decode(self.vae, latents)
            (decode_s,) = clock.seconds()
        dist.barrier()
        total_s = time.perf_counter() - begun
        torch.cuda.empty_cache()  # what decoding held is not the next iteration's
        digests: list[Any] = [None] * self.world_size
        dist.all_gather_object(digests, sha256(latents))
        if len(set(digests)) != 1:
            raise RuntimeError(f"ranks disagree about the latents: {digests}")
        expert, visits = self.experts[EXPERTS[0]], self.guidance.visits(engine)
        ran = [step["expert"] for step in steps]
        expected = engine.expected(Shape(
            layouts=[each for (name, _), each in self.store.layouts.items() if name == EXPERTS[0]],
            buffers=tuple(b.numel() * b.element_size() for b in expert.buffers()),
            passes={name: ran.count(name) * visits for name in EXPERTS},
            world_size=self.world_size,
            branches=self.guidance.branches // visits,
        ), number)  # fmt: skip
        return {
            "kind": kind, "steps": steps, "decode_s": decode_s, "total_s": total_s,
            "counters": asdict(engine.mover.counters - before),
            "expected_counters": asdict(expected),  # by closed formula
            "memory": memory, "gpu": sensors.summary(), "latents_sha256": digests[0],
            "video_sha256": None if frames is None else sha256(frames),
        }  # fmt: skip

    def say(self, what: str) -> None:  # a line of progress, for the launcher to read
        if self.rank == 0:
            with (self.out / "progress").open("a", encoding="utf-8") as file:
                print(what, file=file)


def store_for(
    engine: Engine, experts: dict[str, Expert], source: Source, device: torch.device,
    host: dist.ProcessGroup | None = None,
) -> HostStore:  # fmt: skip
    """The host copy of weights that an engine reads; `host` are the ranks beside, else all."""
    return HostStore(
        experts, source, pin=device.type == "cuda" and engine.pins_store,
        group=(host or dist.group.WORLD) if engine.shares_store else None,
        packing=None if engine.transfer == "bf16" else device, transfer=engine.transfer,
    )  # fmt: skip


def connect(device: torch.device, out: Path, rank: int, world_size: int, timeout_s: float) -> None:
    """Join the other ranks in a default group, by NCCL on GPUs and by gloo on CPU."""
    torch.set_grad_enabled(False)
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
        return
    torch.set_num_threads(1)
    store = "env://"  # torchrun's
    if nodes() == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a cluster's may not be here
        store = f"file://{out / 'rendezvous'}"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout
    )


def software() -> dict[str, Any]:
    """What only torch can tell of software."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else ()
    return {"torch": torch.__version__, "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, nccl)) or None}  # fmt: skip


def main(
    out: str, rank: int, world_size: int, run: Callable[..., Any] = lambda *it: Rank(*it).run()
) -> None:
    """Run one rank, and end its process: 0 if it went well. What came of it is in its file."""
    die_with_parent()
    if os.getppid() == 1:  # it had died before
        os._exit(1)
    folder = Path(out)
    try:
        with naming(folder):
            (folder / f"rank{rank}.pid").write_text(str(os.getpid()), "utf-8")
            spec = json.loads((folder / "spec.json").read_text("utf-8"))
            result = {"status": "ok"} | run(spec, folder, rank, world_size)
    except BaseException as error:
        traceback.print_exc()
        result = outcome(error)
    replace_file(folder / f"rank{rank}.json", json.dumps(result | {"at": time.time()}))
    sys.stdout.flush()
    # A rank whose peer died could hang in tearing the group down.
    os._exit(0 if result["status"] == "ok" else 1)
