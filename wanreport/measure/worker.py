"""One rank of one job: builds the model, runs the iterations, writes what it saw.

Started by `launch` as its own process, by torchrun on GPUs (``python -m
wanreport.measure.worker SPEC OUT``) or forked from a server that has imported torch already on CPU.
Whatever happens, a rank that lives long enough leaves ``OUT/rank<r>.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from wanreport.engines import ENGINES, Counters, Engine, Shape, Stream
from wanreport.jobs.job import job_from_mapping
from wanreport.jobs.schedule import sampled_steps, switch_step
from wanreport.jobs.settings import StreamSettings
from wanreport.measure.fit import blocks_in_budget, require_host_memory, weights_of
from wanreport.measure.launch import Unsupported
from wanreport.measure.link import measure_link
from wanreport.measure.profile import SwitchProfile
from wanreport.measure.ranks import die_with_parent
from wanreport.measure.sensors import Sensors
from wanreport.model.checkpoint import CheckpointError
from wanreport.model.clock import StepClock, compiled, peaks, reset_peaks, sha256
from wanreport.model.denoise import (
    TEXT_TOKENS,
    TINY_VAE,
    VAE,
    Guidance,
    decode,
    denoise,
    encode_prompts,
    latent_shape,
    make_scheduler,
    make_vae,
)
from wanreport.model.expert import EXPERTS, Expert, Segments
from wanreport.model.ulysses import SequenceParallel, cfg_groups
from wanreport.model.weights import HostStore, RandomWeights
from wanreport.planner.plan import make_plan
from wanreport.planner.probe import Probe

# A tiny video: few tokens, and 27 of them, which no world size of the baseline divides.
TINY_VIDEO = {"height": 48, "width": 48, "num_frames": 9}
TINY_TEXT_TOKENS = 8


class Rank:
    """One rank's work on one job.

    ``spec`` holds the ``job`` (the resolved one's fields), ``settings`` (flow_shift,
    boundary_ratio, guidance_scale, guidance_scale_2), ``plan_only`` and ``host_free`` (bytes).
    Results, progress and traces go to the folder ``out``.
    """

    def __init__(self, spec: dict[str, Any], out: Path, rank: int, world_size: int) -> None:
        self.spec, self.job, self.settings = spec, spec["job"], spec["settings"]
        self.out, self.rank, self.world_size = out, rank, world_size
        self.tiny = self.job["scale"] == "tiny"
        self.device = torch.device("cpu" if self.tiny else f"cuda:{rank}")
        self.video = TINY_VIDEO if self.tiny else {key: self.job[key] for key in TINY_VIDEO}
        self.checkpoint = Path(self.job["checkpoint"]) if self.job["checkpoint"] else None

    def run(self) -> dict[str, Any]:
        job = self.job
        if self.device.type == "cuda" and torch.cuda.device_count() < self.world_size:
            raise Unsupported(
                f"torch sees {torch.cuda.device_count()} of {self.world_size} GPUs",
                "install a torch that fits the driver (nvidia-smi names its CUDA version)",
            )
        connect(self.device, self.out, self.rank, self.world_size, job["timeout_s"])
        source, configs = weights_of(self.checkpoint, job["seed"], tiny=self.tiny)
        dtype = getattr(torch, job["dtype"])
        group, pair = cfg_groups() if job["enable_cfg_parallel"] else (dist.group.WORLD, None)
        parallel = SequenceParallel(group)
        segments = Segments.compiled() if job["compile"] else Segments()

        def make(name: str, **changes: Any) -> Expert:
            expert = Expert(name, configs[name] | changes, dtype)
            expert.parallel, expert.segments = parallel, segments
            return expert

        experts = {name: make(name) for name in EXPERTS}
        prefetch = job_from_mapping(job).prefetch(len(experts[EXPERTS[0]].blocks))
        engine = ENGINES[job["engine"]](prefetch=prefetch)
        if packs := job["transfer"] == "packed":  # the plan chooses the other settings
            engine = Stream(transfer="packed")
        layouts = list(HostStore(experts, RandomWeights()).layouts.values())
        if not self.tiny:
            require_host_memory(engine, layouts, self.world_size, self.spec["host_free"])
        room = blocks_in_budget(job, layouts) if job["engine"] == "stream" else 0
        self.say("link")
        link = measure_link(self.device, dist.group.WORLD)
        pin = self.device.type == "cuda" and engine.pins_store
        shared = dist.group.WORLD if engine.shares_store else None
        packing = self.device if packs else None
        store = HostStore(experts, source, pin=pin, group=shared, packing=packing)
        shape = self._shape(experts[EXPERTS[0]], store)
        guidance = self._guidance(configs[EXPERTS[0]]["text_dim"], dtype)
        self.vae = None
        if job["decode"] and self.rank == 0:
            config = TINY_VAE if self.tiny else VAE
            self.vae = make_vae(config, self.checkpoint, self.device, job["seed"])
        self.say("weights")
        started = time.perf_counter()
        memory = {}
        if self.device.type == "cuda":  # what can be allocated; the driver counts its own share too
            properties = torch.cuda.get_device_properties(self.device)
            memory = {"gpu_memory_bytes": properties.total_memory}
        result: dict[str, Any] = {
            "model": self._model(configs[EXPERTS[0]], store),
            "link": link,
            "machine": memory,
            "software": software(),
            "sglang": {"prefetch_layers": prefetch},
            "engine": {
                "prefetch": prefetch,
                "branches_per_visit": engine.branches_per_visit,
                "counters_derived": engine.counters_derived,
            },
        }
        guidance = replace(guidance, pair=pair)
        if job["engine"] == "stream":
            engine = Stream(self._settings(make, store, guidance, link, room, result))
        if self.spec["plan_only"]:
            return result | {"iterations": []}
        engine.attach(experts, store, self.device, dist.group.WORLD)
        kinds = ["warmup"] * job["warmup_iterations"] + ["clean"] * job["clean_iterations"]
        kinds += ["profiled"] * job["profile"]
        result["iterations"] = []
        for number, kind in enumerate(kinds):
            iteration = self._iteration(kind, number, experts, engine, store, guidance, shape)
            first = iteration.pop("first_step_done")
            result.setdefault("cold_start_s", first - started)
            result["schedule"] = iteration.pop("schedule")
            result["iterations"].append(iteration)
        result["timeline"] = engine.mover.timeline.rows()
        engine.detach()
        store.close()
        return result

    def _settings(
        self, make: Callable[..., Expert], store: HostStore, guidance: Guidance,
        link: dict[str, Any] | None, room: int, result: dict[str, Any],
    ) -> StreamSettings:  # fmt: skip
        """Choose how `stream` moves weights; why goes to the result's ``plan``."""
        store.buffer(EXPERTS[0], None)  # filled now: that is not planning
        self.say("plan")
        begun = time.perf_counter()
        probe = Probe(
            lambda blocks: make(EXPERTS[0], num_layers=blocks),
            store, dist.group.WORLD, self._noise(), guidance,
        )  # fmt: skip
        rate = link["h2d_pinned_gb_s"] * 1e9 if link else None
        inputs = probe.inputs(rate, self.job["num_inference_steps"])
        result["plan"], settings = make_plan(inputs, room, probe.trial)
        torch.cuda.empty_cache()  # what the probe held is not the job's
        result["plan"]["planning_s"] = time.perf_counter() - begun
        return settings

    def _noise(self) -> torch.Tensor:
        """The latents that denoising starts from; a plan is made on them too."""
        generator = torch.Generator().manual_seed(self.job["seed"])
        return torch.randn(latent_shape(**self.video), generator=generator).to(self.device)

    def _guidance(self, text_dim: int, dtype: torch.dtype) -> Guidance:
        job, settings = self.job, self.settings
        if self.checkpoint:
            prompts = [job["prompt"]] + [job["negative_prompt"]] * job["cfg"]
            texts = encode_prompts(self.checkpoint, prompts, self.device)
        else:
            tokens = TINY_TEXT_TOKENS if self.tiny else TEXT_TOKENS
            generator = torch.Generator().manual_seed(job["seed"] + 1)
            texts = [
                torch.randn(1, tokens, text_dim, generator=generator).to(self.device)
                for _ in range(1 + job["cfg"])
            ]
        texts = [text.to(dtype) for text in texts]
        given = settings["guidance_scale"], settings["guidance_scale_2"]
        scales = dict(zip(EXPERTS, given, strict=True))
        return Guidance(texts[0], texts[1] if job["cfg"] else None, scales)

    def _shape(self, expert: Expert, store: HostStore) -> Shape:
        """For the closed formulas; passes are filled in when the schedule is known."""
        return Shape(
            blocks=len(expert.blocks),
            block=store.layouts[expert.name, 0],
            outer=store.layouts[expert.name, None],
            buffers=tuple(b.numel() * b.element_size() for b in expert.buffers()),
            passes={},
            world_size=self.world_size,
        )

    def _model(self, config: dict[str, Any], store: HostStore) -> dict[str, Any]:
        p_t, p_h, p_w = config["patch_size"]
        shape = _, _, frames, height, width = latent_shape(**self.video)
        return {
            **{key: self.settings.get(key) for key in (
                "config", "how", "flow_shift", "boundary_ratio", "guidance_scale",
                "guidance_scale_2")},
            "num_layers": config["num_layers"],
            "num_heads": config["num_attention_heads"],
            "head_dim": config["attention_head_dim"],
            "ffn_dim": config["ffn_dim"],
            "text_dim": config["text_dim"],
            "latent_shape": list(shape[1:]),
            "tokens": (frames // p_t) * (height // p_h) * (width // p_w),
            "weights": "checkpoint" if self.checkpoint else "random",
            "prompt_embeds": "encoded" if self.checkpoint else "random",
            "block_bytes": store.layouts[EXPERTS[0], 0].nbytes,
            "outer_bytes": store.layouts[EXPERTS[0], None].nbytes,
            "expert_bytes": store.nbytes(EXPERTS[0]),
            **self.video,
        }  # fmt: skip

    def _iteration(
        self, kind: str, number: int, experts: dict[str, Expert], engine: Engine,
        store: HostStore, guidance: Guidance, shape: Shape,
    ) -> dict[str, Any]:  # fmt: skip
        job, device = self.job, self.device
        scheduler = make_scheduler(self.settings["flow_shift"], self.checkpoint)
        ratio = self.settings["boundary_ratio"]
        boundary = None if ratio is None else ratio * scheduler.config.num_train_timesteps
        scheduler.set_timesteps(job["num_inference_steps"])
        times = [float(t) for t in scheduler.timesteps]
        switch = switch_step(times, ratio, scheduler.config.num_train_timesteps)
        run = sampled_steps(len(times), switch, job["sampled_steps"])
        if kind == "warmup" and (self.tiny or len(run) < len(times)):
            run = [index for index in run if index in (0, switch)]  # each expert once
        profile = None
        if kind == "profiled":
            path = self.out / "traces" / f"rank{self.rank}.json.gz"
            profile = SwitchProfile(path, run, switch, engine, timeline=self.rank == 0)
            if self.tiny:  # a page shows no more of it than what the profiler watches
                run = [index for index in run if index in (profile.begin, *profile.watched)]

        clock, steps, done = StepClock(device), [], 0.0

        @contextmanager
        def on_step(index: int, expert: str, timestep: float) -> Iterator[None]:
            nonlocal done
            self.say(kind, number, index, len(times))
            moved = engine.mover.counters.h2d_bytes
            with ExitStack() as stack:
                if profile:
                    stack.enter_context(profile.step(index))
                stack.enter_context(clock.step())
                yield
            moved = engine.mover.counters.h2d_bytes - moved
            steps.append(
                {"index": index, "expert": expert, "timestep": timestep, "h2d_bytes": moved}
            )
            if number == 0 and index == 0:
                if device.type == "cuda":
                    torch.cuda.synchronize()
                done = time.perf_counter()

        latents = self._noise()
        sensors = Sensors(device)
        dist.barrier()
        reset_peaks(device)
        before = engine.mover.counters + Counters()
        begun = time.perf_counter()
        with sensors:
            latents = denoise(
                experts, engine, scheduler, latents, guidance,
                steps=job["num_inference_steps"], boundary=boundary, on_step=on_step, run=run,
            )  # fmt: skip
            seconds = clock.seconds()
        if profile:
            profile.close()
        memory = peaks(device, store.pinned_bytes)
        frames, decode_s = None, None
        if self.vae is not None:
            self.say("decode")
            clock = StepClock(device)
            with clock.step():
                frames = decode(self.vae, latents)
            decode_s = clock.seconds()[0]
        dist.barrier()
        total = time.perf_counter() - begun
        torch.cuda.empty_cache()  # what decoding held is not the next iteration's
        digest = sha256(latents)
        video = None if frames is None else sha256(frames)
        del frames
        digests: list[Any] = [None] * self.world_size
        dist.all_gather_object(digests, digest)
        if len(set(digests)) != 1:
            raise RuntimeError(f"ranks disagree about the latents: {digests}")
        for step, value in zip(steps, seconds, strict=True):
            step["seconds"] = value
        visits = guidance.visits(engine)
        ran = [step["expert"] for step in steps]
        passes = {expert: ran.count(expert) * visits for expert in EXPERTS}
        shape = replace(shape, passes=passes, branches=guidance.branches // visits)
        wanted = engine.expected(shape, number)
        return {
            "kind": kind,
            "steps": steps,
            "decode_s": decode_s,
            "total_s": total,
            "counters": asdict(engine.mover.counters - before),
            "expected_counters": asdict(wanted),
            "memory": memory,
            "gpu": sensors.summary(),
            "compiled": compiled() if job["compile"] else None,
            "latents_sha256": digest,
            "video_sha256": video,
            "first_step_done": done,
            "schedule": {
                "timesteps": times,
                "sigmas": [float(s) for s in scheduler.sigmas],
                "switch_step": switch,
                "experts": ran,
            },
        }

    def say(self, what: str, *numbers: int) -> None:
        """One line of progress, for the launcher to read."""
        if self.rank == 0:
            with (self.out / "progress").open("a") as file:
                print(what, *numbers, file=file)


def connect(device: torch.device, out: Path, rank: int, world_size: int, timeout_s: float) -> None:
    """Join the other ranks in a default group, by NCCL on GPUs and by gloo on CPU."""
    torch.set_grad_enabled(False)
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = f"file://{out / 'rendezvous'}"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout
        )


def software() -> dict[str, Any]:
    """What only torch can add to :func:`wanreport.measure.machine.software`."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
    }


def main(
    spec_file: str, out: str, rank: int, world_size: int,
    run: Callable[..., Any] = lambda *given: Rank(*given).run(),
) -> int:  # fmt: skip
    """Run one rank; 0 if it went well. The result or the error goes to ``rank<r>.json``."""
    die_with_parent()
    if os.getppid() == 1:  # it had died before
        return 1
    folder = Path(out)
    (folder / f"rank{rank}.pid").write_text(str(os.getpid()))
    try:
        spec = json.loads(Path(spec_file).read_text())
        result = {"status": "ok"} | run(spec, folder, rank, world_size)
    except BaseException as error:
        traceback.print_exc()
        text = str(error).strip()
        oom = isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text
        timeout = "Timed out" in text or "Watchdog caught collective operation timeout" in text
        broken = "non-finite" if isinstance(error, FloatingPointError) else "failed"
        result = {
            "status": "oom" if oom else "timeout" if timeout else broken,
            "reason": f"{type(error).__name__}: {text.splitlines()[0] if text else ''}",
            "at": time.time(),
        }
        if isinstance(error, Unsupported | CheckpointError):
            result |= {"status": "unsupported", "reason": text, "hint": error.hint}
    part = folder / f"rank{rank}.part"
    part.write_text(json.dumps(result))
    part.rename(folder / f"rank{rank}.json")
    sys.stdout.flush()
    # A rank whose peer died could hang in tearing the group down.
    os._exit(0 if result["status"] == "ok" else 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
