"""The server's page as a Gradio Space: type, and see each layer's answer, and where the text leaves.

MODEL=runs/mine python app.py
"""

import os
import time
from collections import deque

import gradio as gr
import view

from modeling_pfberxit.evaluation.walk import walk
from modeling_pfberxit.model.criteria import able
from modeling_pfberxit.model.losses import problem_type_of
from modeling_pfberxit.serving.ladder import FULL
from modeling_pfberxit.serving.layers import described, policy_of, recording_of
from modeling_pfberxit.serving.predictors import OWN
from modeling_pfberxit.serving.start import Loading

RULE = "rule: "
EXAMPLE = "The story never quite comes together, but it is fun."


def interface(model: str) -> gr.Blocks:
    """The page of a saved model."""
    predictor, visits = Loading(device="cpu").first(model), deque(maxlen=10_000)
    rules = able(problem_type_of(predictor.model.config))
    settings = [OWN, FULL, *predictor.points, *(f"{RULE}{name}" for name in rules if name != "appointed")]

    def ask(text: str, pair: str, setting: str):
        """Run the text through all layers; tau and t become the setting's own."""
        began = time.monotonic()
        asked = {"criterion": setting.removeprefix(RULE)} if setting.startswith(RULE) else setting
        policy, active = policy_of(predictor, predictor.point(OWN), asked), predictor.point(asked).name
        (tokens,), _ = predictor.read([(text, pair) if pair else text or " "])
        found = walk(recording_of(predictor, tokens), policy)
        walked = described(found, predictor, policy, len(tokens["input_ids"]))
        left = found.outcomes[found.own]
        visits.append((began, time.monotonic() - began, left.exit_layer, setting))
        tau = policy.threshold if isinstance(policy.threshold, float) else None
        highest, patience = view.scale(walked, tau)[0], policy.patience if found.patiences else 1
        return (
            (found, walked),
            view.layers(walked, predictor.labels, left.exit_layer, walked.outcomes[found.own].probabilities, tau),
            gr.Slider(label=f"τ, for the {walked.measure or 'score'}", maximum=highest, value=tau or 0.0,
                      step=highest / 1000, visible=bool(found.thresholds)),
            gr.Slider(maximum=max([2, *found.patiences]), value=patience, visible=bool(found.patiences)),
            f"A text leaves when {walked.when}.",
            view.frontier(predictor.points, predictor.depth, active),
        )  # fmt: skip

    def move(state, tau: float, patience: int) -> str:
        """Decide anew; the model is not asked."""
        found, walked = state
        outcome = found.at(tau, min(int(patience), found.patiences[-1]) if found.patiences else 1)
        number = list(found.outcomes).index(outcome)
        return view.layers(walked, predictor.labels, outcome.exit_layer, walked.outcomes[number].probabilities, tau)

    with gr.Blocks(title="Where does it leave?") as blocks:
        gr.Markdown(f"# Where does it leave?\n{predictor.depth} layers, {len(predictor.labels)} labels")
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=3):
                text = gr.Textbox(EXAMPLE, label="Text", lines=2)
                with gr.Accordion("Second text, for models of pairs", open=False):
                    pair = gr.Textbox(label="Second text")
                shown = gr.HTML()
                tau = gr.Slider(0, 1, label="τ")
                patience = gr.Slider(1, 2, step=1, label="t, the patience")
                setting = gr.Dropdown(settings, value=settings[0], label="Setting")
                when = gr.Markdown()
            with gr.Column(scale=2):
                gr.HTML(lambda: view.charts(visits, time.monotonic()), every=gr.Timer(5), label="Visits")
                plot = gr.HTML(label="Frontier")
        drawn = [state, shown, tau, patience, when, plot]
        gr.on(
            [blocks.load, text.change, pair.change, setting.input], ask, [text, pair, setting], drawn,
            trigger_mode="always_last", show_progress="hidden",
        )  # fmt: skip
        gr.on([tau.input, patience.input], move, [state, tau, patience], shown, show_progress="hidden")
    return blocks


if __name__ == "__main__":
    if "MODEL" not in os.environ:
        raise SystemExit("Set MODEL to the folder of a fine-tuned model, or to its name on the Hub.")
    interface(os.environ["MODEL"]).launch()
