"""Figures of the token label simulation."""

from pathlib import Path
from typing import Any


def plot(result: dict[str, Any], folder: Path) -> None:
    """Five figures: cost by mode, by saving, by shape, over the judge's price, and requests per wave."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    folder.mkdir(parents=True, exist_ok=True)
    m = result["measurements"]
    modes = {f"{line['name']} k={line['k']}": line["inside_paper_over_this_flops"] for line in m["modes"]}
    savings = {line["name"]: line["inside_petaflops_per_response"] for line in m["ablation"]}
    shapes = {shape: line["paper_over_this_flops"] for shape, line in m["by_shape_k8"].items()}
    for name, bars, title in (
        ("modes", modes, "FLOPs of paper over FLOPs of the mode, boundaries inside"),
        ("savings", savings, "PFLOP per response with savings on and off, boundaries inside"),
        ("shapes", shapes, "FLOPs of paper over FLOPs of exact, by shape of the violation curve"),
    ):
        figure, axis = pyplot.subplots(figsize=(7, 3.2))
        drawn = axis.barh(list(bars)[::-1], list(bars.values())[::-1])
        axis.bar_label(drawn, fmt="%.3g", padding=3)
        axis.set(xscale="log", title=title, xticks=[], xlim=(None, 1.4 * max(bars.values())))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=120)
    figure, axis = pyplot.subplots(figsize=(7, 3.2))
    prices = [point["judge_over_draw"] for point in m["judge_price"]]
    for name in ("cheapest_first_saves", "this_over_best"):
        values = [point[name] for point in m["judge_price"]]
        axis.plot(prices, values, marker="o", label=name.replace("_", " "))
    axis.set(xscale="log", yscale="log", xlabel="cost of a judge call / cost of a draw", ylabel="x")
    axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "judge_price.png", dpi=120)
    figure, axis = pyplot.subplots(figsize=(7, 3.2))
    for name in ("as the job", "always looking ahead", "never looking ahead"):
        told = m["waves"][name]["per_wave"]
        axis.plot([wave["draws"] + wave["judges"] for wave in told], label=name)
    axis.axhline(m["waves"]["slots"], color="grey", linewidth=0.8, linestyle="--", label="a full batch")
    axis.set(yscale="log", xlabel="wave", title=f"Requests per wave, {m['waves']['rows']} responses")
    axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "waves.png", dpi=120)
    pyplot.close("all")
