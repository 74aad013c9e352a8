"""What a stage leaves is a plain model folder: others load it and answer as we do."""

import openai
import pytest
from judge_servers import Served, needs_serve

from pipeline.steps import artifact


@needs_serve
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_transformers_serve_answers_as_our_evaluation_does(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    plan, runs = run_steps_here(write_recipe(recipe_dict | {"stages": {"sft": {"method": "sft"}}}))
    model, answers = plan.models["sft", 0].base, plan.results["sft", "gsm8k", 0].inputs["answers"]
    samples = artifact.read_rows(answers.directory(runs) / artifact.SAMPLES)
    served = Served(str(model.directory(runs) / "model"), tmp_path / "serve.log")
    try:
        served.start()
        with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            replies = [
                client.chat.completions.create(
                    model=served.model, messages=sample["messages"], temperature=0.0, max_tokens=8
                )
                for sample in samples
            ]
    finally:
        served.kill()
    assert len(replies) == 4
    told = [reply.choices[0].message.content.strip() for reply in replies]
    assert told == [sample["answer"].strip() for sample in samples]
