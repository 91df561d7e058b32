"""A DICOM node around the denoiser: what comes in by C-STORE goes on as a derived series."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from adl_monai.bundle import find_bundle
from adl_monai.data.derivation import Derivation
from adl_monai.errors import OutputError, UsageError
from adl_monai.node.arrivals import Arrivals
from adl_monai.node.delivery import Delivery
from adl_monai.node.network import Peer, application_entity_title, silent_pynetdicom
from adl_monai.node.receiver import Receiver
from adl_monai.node.spool import Spool
from adl_monai.node.worker import Worker
from adl_monai.stages.one_scan import DenoiserChoice, denoise_job
from adl_monai.stages.outputs import Job

_GOODBYE = 5.0  # seconds for a delivery to end its association


def listen(
    port: int,
    aet: str,
    *,
    forward: str | None = None,
    out: Path | None = None,
    allow: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    spool: Path = Path("adl_monai_spool"),
    model: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    strength: float = 1.0,
    quiet_time: float = 10.0,
    max_series: int = 32,
    min_free: int = 1024,
    report: Callable[[str], None] = print,
    stop: Event | None = None,
) -> None:
    """Receive series, denoise them, and send or write the derived series, until stopped.

    An image is in the spool, on the disk, before its sender is told of success, and leaves it only when its derived
    series has been delivered. A series that cannot be denoised, may be incomplete, or is refused by the peer for good
    is kept in the spool's ``failed`` folder.

    Args:
        port: To listen at; 0 takes a free one.
        aet: Our AE title, to be called by and to call by.
        forward: ``HOST:PORT:AET`` to send derived series to.
        out: Folder to write derived series below, in numbered folders.
        allow: AE titles that may call; none given lets any call.
        host: Address of the interface to listen at.
        spool: Folder for what is on its way; one listener each.
        model: See ``adl_monai.bundle.find_bundle``. Loaded once, at the start.
        device: As in ``infer``.
        precision: As in ``infer``.
        strength: As in ``infer``.
        quiet_time: Seconds after its last image, and after the end of its association, that make a series complete.
        max_series: Series in the spool at most; further ones are refused with status 0xA700.
        min_free: Megabytes of the spool's disk to leave free; images that need them are refused with status 0xA700.
        report: Is told, in one line, what is done. May be called by two threads.
        stop: Ends the node when set; None runs until an exception (a signal's) ends it.

    Raises:
        UsageError: For wrong options, a busy port or spool, or if pynetdicom is missing.
        OutputError: If the spool or ``out`` cannot be written.
        ModelError: If there is no such model.
    """
    if forward is None and out is None:
        raise UsageError("derived series have nowhere to go; pass --forward HOST:PORT:AET, --out DIR, or both.")
    silent_pynetdicom()
    # Threads share the filters of warnings, so that pydicom's, which quote patients, cannot be held back one by one.
    warnings.simplefilter("ignore")
    stop = stop or Event()
    aet, allow = application_entity_title(aet), tuple(application_entity_title(title) for title in allow)
    peer = None if forward is None else Peer.parse(forward)
    if out is not None:
        out = _output_folder(out, spool)
    held = Spool(spool, max_series, min_free * 1_000_000)
    try:
        denoisers = DenoiserChoice(model, device=device, precision=precision, strength=strength, progress=False)
        denoisers.get()  # a wrong model is an error before anyone calls
        models = [Derivation.of_checkpoint(find_bundle(model, axes) / "models" / "model.pt") for axes in _axes(model)]

        def say(line: str) -> None:
            with contextlib.suppress(OSError):  # nobody listens any more; no reason to stop working
                report(line)

        def denoise(source: Path, derived: Path) -> int:
            return denoise_job(denoisers, Job(source, derived, overwrite=True)).clipped

        weights = ", ".join(f"{one.model} {one.weights_sha256}" for one in models)
        recipe = f"{weights} strength {strength:g} to {peer} and {out}"
        arrivals, arriving = Arrivals(quiet_time), len(held.open_series())
        receiver = Receiver(held, arrivals, aet, allow, (host, port))
        delivery = Thread(target=Delivery(held, aet, peer, out, say).run, args=(stop,), daemon=True)
        try:
            used = " or ".join(f"{one.model}{use}" for one, use in zip(models, _axes(model).values(), strict=True))
            say(f"listening at {receiver.address[0]}:{receiver.address[1]} as {aet}, model {used}")
            if waiting := held.count():
                say(f"{waiting} series wait in the spool")
            if arriving:
                say(f"{arriving} of them were arriving when this program ended, and wait for the rest")
            delivery.start()
            Worker(held, arrivals, denoise, recipe, say).run(stop)
        finally:
            stop.set()
            receiver.close()
            if delivery.is_alive():
                delivery.join(_GOODBYE)
    finally:
        held.release()


def _axes(model: str | Path | None) -> dict[int, str]:
    """For how many axes there is a model, and what for in words."""
    return {3: " (volumes)", 2: " (thick slices, single images)"} if model is None else {3: ""}


def _output_folder(out: Path, spool: Path) -> Path:
    out, spool = out.resolve(), spool.resolve()
    if out == spool or spool in out.parents or out in spool.parents:
        raise OutputError(f"--out {out} and the spool {spool} lie in one another; name two separate folders.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {out} cannot be made ({error.strerror}); choose another --out.") from error
    if not os.access(out, os.W_OK):
        raise OutputError(f"folder {out} is not writable; choose another --out.")
    return out
