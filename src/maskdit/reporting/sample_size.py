"""How samples were drawn, and what their number says about a distance, as notes below a table."""

from collections.abc import Mapping, Sequence

from maskdit.reporting.records import Records, distance_of

ENOUGH = 10_000  # samples, at least, that the authors of FID recommend (README of github.com/bioinf-jku/TTUR)


def setting(records: Records) -> list[str]:
    """How the samples of records with one protocol were labelled, and on how many devices their networks were trained."""
    protocols = [record.get("protocol", {}) for record in records.values()]
    speeds = [record.get("checkpoint", {}).get("speed") or {} for record in records.values()]
    found = [
        f"Samples: {known['images']:,} of each row, with {known['labels']} labels." for known in protocols[:1] if "labels" in known
    ]
    if devices := sorted({f"{speed['devices']} x {speed['device']}" for speed in speeds if speed.get("device")}):
        found.append(f"Trained on {' or '.join(devices)}.")
    return [" ".join(found)] if found else []


def origins(chosen: Mapping[str, Sequence[str]]) -> list[str]:
    """Which evaluations have values that sweeps chose, a note for each sweep."""
    sweeps = dict.fromkeys(sweep for names in chosen.values() for sweep in names)
    rows = {sweep: ", ".join(name for name, names in chosen.items() if sweep in names) for sweep in sweeps}
    return [f"Best of the sweep {sweep}, which chose on other samples: {names}." for sweep, names in rows.items()]


def notes(records: Records) -> list[str]:
    """Notes on records with one protocol: a warning if their samples are few, and the distance of held-out real images.

    Measured on the demo: 32 real images are 350 to 420 from the others, and 32 samples of DiT 370 to 400, so that this number
    cannot tell them apart; 256 real images are 130 from the others, and 256 samples 260.
    """
    record = next((record for record in records.values() if distance_of(record["metrics"])), None)
    if record is None:
        return []
    name, samples, real = distance_of(record["metrics"]), record["protocol"]["images"], record["real"]
    found = []
    if samples < ENOUGH:
        found.append(
            f"Warning: {name} rests on {samples:,} samples; the authors of FID recommend at least {ENOUGH:,}. With few samples "
            "it is much too large: compare it only with a distance over the same number of samples."
        )
    if (held := real.get("heldout")) and distance_of(held):
        other = distance_of(held)  # which may have another name, because FID is of 50,000 images
        found.append(
            f"Real images for comparison: {held['images']:,} held-out real images have a {other} of {held[other]:.5g}. "
            f"This is over {held['images']:,} images, not {samples:,}."
        )
    if floor := real.get("floor"):
        told = ", ".join(f"{each} {value:.4g}" for each, value in floor.items() if each != "images")
        found.append(f"Floor: between two halves of the real images, {floor['images']:,} each, {told}.")
    if left_out := real.get("memorisation"):
        measure, share = next((each, value) for each, value in left_out.items() if each.startswith("memorised"))
        whole = real["train_images"]
        some = f"only {left_out['of']:,} of the {whole:,}" if left_out["of"] < whole else f"the reference's {whole:,}"
        found.append(
            f"{measure}: the share of samples that are no farther from their nearest training image than that one is from its own "
            f"nearest, over {some} training images. Of {left_out['images']:,} real images, each left out in turn, it is "
            f"{share:.3g}; a share well above that means copies."
        )
    return found
