"""The peers of engine_throughput.py, each in a virtual environment of its own, used as its documentation says:
`python engine_peers.py PEER URL ROWS FOLDER`. Answers land in FOLDER; run again, a peer resumes as it can.

Only the standard library and the peer are imported.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

SLOTS = 64


def prompts(rows: int) -> list[str]:
    return [f"prompt number {at}" for at in range(rows)]


def bare(url: str, rows: int, folder: Path) -> None:
    """An aiohttp loop: 64 workers on one list. The best that a Python client gets; it keeps nothing on the way."""
    import aiohttp

    async def main() -> None:
        waiting, answers = prompts(rows)[::-1], []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def work() -> None:
                while waiting:
                    prompt = waiting.pop()
                    body = {
                        "model": "mock",
                        "messages": [{"role": "user", "content": prompt}],
                        "max_tokens": 8,
                    }
                    async with session.post(f"{url}/chat/completions", json=body) as response:
                        told = await response.json()
                    answers.append({"prompt": prompt, "answer": told["choices"][0]["message"]["content"]})

            await asyncio.gather(*(work() for _ in range(SLOTS)))
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))

    asyncio.run(main())


def distilabel(url: str, rows: int, folder: Path) -> None:
    """A pipeline of one TextGeneration task over OpenAILLM, batches as large as the endpoint has slots; its cache
    is what resumes it."""
    from distilabel.models.llms import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="throughput", cache_dir=str(folder / "cache")) as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": text} for text in prompts(rows)], batch_size=SLOTS)
        llm = OpenAILLM(model="mock", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 8})
        load >> TextGeneration(llm=llm, input_batch_size=SLOTS)
    made = pipeline.run(use_cache=True)["default"]["train"]
    keep(folder, [(row["instruction"], row["generation"]) for row in made])


def curator(url: str, rows: int, folder: Path) -> None:
    """A curator.LLM over the dataset with the openai backend and its limits lifted; its cache is what resumes it."""
    os.environ.update(
        OPENAI_API_KEY="none", CURATOR_CACHE_DIR=str(folder / "cache"), CURATOR_DISABLE_RICH_DISPLAY="1",
        TELEMETRY_ENABLED="false", CURATOR_VIEWER="0",
    )  # fmt: skip
    # Its tokenizer's file is fetched when it is missing; one of its own requirements carries it.
    packages = Path(sys.prefix).glob("lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers")
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(next(packages, "")))
    from bespokelabs import curator as library

    limits = {"max_requests_per_minute": 1_000_000, "max_tokens_per_minute": 1_000_000_000}
    llm = library.LLM(
        model_name="mock", backend="openai",
        backend_params={"base_url": url, "max_concurrent_requests": SLOTS, **limits},
    )  # fmt: skip
    texts = prompts(rows)
    made = llm(texts)
    made = getattr(made, "dataset", made)
    keep(folder, [(text, row["response"]) for text, row in zip(texts, made, strict=False)])


def datatrove(url: str, rows: int, folder: Path) -> None:
    """An InferenceRunner with the endpoint server, checkpoints in chunks of 500, the request cache on."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    async def ask(document: Document, generate) -> object:  # type: ignore[no-untyped-def]
        return await generate({"messages": [{"role": "user", "content": document.text}], "max_tokens": 8})

    config = InferenceConfig(
        server_type="endpoint", model_name_or_path="mock", endpoint_url=url.removesuffix("/v1"),
        max_concurrent_generations=SLOTS, metric_interval=120,
    )  # fmt: skip
    writer = JsonlWriter(
        str(folder / "out"), output_filename="${rank}_${chunk_index}.jsonl", compression=None
    )
    runner = InferenceRunner(
        ask, config, writer, checkpoints_local_dir=str(folder / "checkpoints"), records_per_chunk=500
    )
    documents = [Document(text=text, id=str(at)) for at, text in enumerate(prompts(rows))]
    LocalPipelineExecutor([documents, runner], logging_dir=str(folder / "logs"), tasks=1).run()
    made = []
    for path in sorted((folder / "out").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            made.append((row["text"], row["metadata"]["rollout_results"][0]["text"]))
    keep(folder, made)


def keep(folder: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows]
    (folder / "answers.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    run = {"bare": bare, "distilabel": distilabel, "curator": curator, "datatrove": datatrove}[sys.argv[1]]
    run(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
