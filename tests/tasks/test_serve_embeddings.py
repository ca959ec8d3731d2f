"""/v1/embeddings, as the unmodified OpenAI client sees it."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import torch

from tasks.serve.limits import Limits
from tests.tasks.serving import encoder, serving

TEXTS = ["a", "The loss falls.", "naïve café 🙂", "the same text twice", "the same text twice", "x" * 90]


@pytest.fixture(scope="module")
def served():
    return encoder()


def expected(served, texts):
    """Each text alone, in one unpadded row: the mean of its tokens' hidden states."""
    rows = [served.tokenizer.encode_with(f"[CLS]{text}[SEP]", ["[CLS]", "[SEP]"]) for text in texts]
    with torch.no_grad():
        vectors = [served.trained.model(torch.tensor([row]))[0].mean(0) for row in rows]
    return np.stack([(vector / vector.norm()).numpy() for vector in vectors])


def vectors(answer):
    return np.array([item.embedding for item in answer.data])


def test_texts_and_their_token_ids_give_the_vectors_of_the_model(client, served):
    one = client.embeddings.create(model="tiny-bert", input=TEXTS[1])
    np.testing.assert_allclose(vectors(one), expected(served, TEXTS[1:2]), atol=1e-6)
    many = client.embeddings.create(model="tiny-bert", input=TEXTS)
    np.testing.assert_allclose(vectors(many), expected(served, TEXTS), atol=1e-6)
    assert [item.index for item in many.data] == list(range(len(TEXTS))) and many.object == "list"
    ids = [served.tokenizer.encode(text) for text in TEXTS]
    by_ids = client.embeddings.create(model="tiny-bert", input=ids)
    np.testing.assert_allclose(vectors(by_ids), vectors(many), atol=1e-6)
    single = client.embeddings.create(model="tiny-bert", input=ids[1])
    np.testing.assert_allclose(vectors(single), vectors(one), atol=1e-6)
    assert many.usage.prompt_tokens == many.usage.total_tokens == sum(len(row) + 2 for row in ids)
    assert many.model == "tiny-bert"


def test_base64_and_numbers_are_the_same_and_dimensions_cut(client):
    numbers = vectors(client.embeddings.create(model="tiny-bert", input=TEXTS, encoding_format="float"))
    coded = client.embeddings.create(model="tiny-bert", input=TEXTS, encoding_format="base64")
    assert all(isinstance(item.embedding, str) for item in coded.data)
    np.testing.assert_array_equal(vectors(client.embeddings.create(model="tiny-bert", input=TEXTS)), numbers)
    short = vectors(client.embeddings.create(model="tiny-bert", input=TEXTS, dimensions=5))
    cut = numbers[:, :5] / np.linalg.norm(numbers[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(short, cut, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": ""}, "input is an empty text"),
        ({"input": ["a", ""]}, r"input\[1\] is an empty text"),
        ({"input": []}, "must not be empty"),
        ({"input": [[]]}, "must not be empty"),
        ({"input": 5}, "input must be a text"),
        ({"input": [1, "a"]}, "input must be a text"),
        ({"input": [True]}, "input must be a text"),
        ({"input": ["a"] * 2049}, "2049 entries, more than 2048"),
        ({"input": "x" * 200}, "maximum context length is 128 tokens, but input has 202 tokens"),
        ({"input": [3, 300]}, "token id 300; this model's go from 0 to 260"),
        ({"input": [-1]}, "token id -1"),
        ({"input": "a", "dimensions": 33}, "dimensions 33 is more than the model's 32"),
        ({"input": "a", "dimensions": 0}, "dimensions: .*greater than or equal to 1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format: .*'float' or 'base64'"),
        ({"input": "a", "extra_body": {"truncate": True}}, "Unrecognized request argument supplied: truncate"),
    ],
)
def test_wrong_requests_are_refused_with_the_reason(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.embeddings.create(model="tiny-bert", **options)
    assert caught.value.type == "invalid_request_error"


def test_other_models_other_tasks_and_other_paths(client, url):
    with pytest.raises(openai.NotFoundError, match="The model `gpt-9` does not exist") as caught:
        client.embeddings.create(model="gpt-9", input="a")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert [model.id for model in client.models.list()] == ["tiny-bert"]
    assert client.models.retrieve("tiny-bert").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")
    with pytest.raises(openai.BadRequestError, match="does not complete text"):
        client.completions.create(model="tiny-bert", prompt="a")
    with pytest.raises(openai.NotFoundError, match="POST /v1/responses: Not Found; /v1/models says") as caught:
        client.responses.create(model="tiny-bert", input="a")
    assert caught.value.type == "invalid_request_error"
    assert httpx.get(f"{url}/v1/embeddings").status_code == 405


def test_many_clients_at_once_get_their_own_vectors(client, served, url):
    texts = [f"text number {number} " + "long " * (number % 7) for number in range(60)]
    with ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda text: client.embeddings.create(model="tiny-bert", input=text), texts))
    np.testing.assert_allclose(np.concatenate([vectors(a) for a in answers]), expected(served, texts), atol=1e-6)
    counted = httpx.get(f"{url}/metrics").text
    assert 'groundwork_requests_total{path="/v1/embeddings",status="200"}' in counted
    batches = float(counted.split('groundwork_batch_rows_count{work="embed"} ')[1].split()[0])
    rows = float(counted.split('groundwork_batch_rows_sum{work="embed"} ')[1].split()[0])
    assert rows >= 60 and batches < rows


def test_keys_and_sizes(served):
    limits = Limits(max_body_bytes=1000)
    with serving(served, limits, keys=("right", "other")) as url:
        for key in ("right", "other"):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            assert len(client.embeddings.create(model="tiny-bert", input="a").data) == 1
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key") as caught:
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.APIStatusError, match="the limit is 1000") as caught:
            client.embeddings.create(model="tiny-bert", input="x" * 2000)
        assert caught.value.status_code == 413

        def body():
            yield from [b'{"model": "tiny-bert", "input": "'] + [b"x" * 300] * 10

        headers = {"Authorization": "Bearer right", "Content-Type": "application/json"}
        assert httpx.post(f"{url}/v1/embeddings", content=body(), headers=headers).status_code == 413
        no_key = httpx.get(f"{url}/v1/models")
        assert no_key.status_code == 401 and "didn't provide an API key" in no_key.json()["error"]["message"]
        assert httpx.get(f"{url}/health").status_code == 200
