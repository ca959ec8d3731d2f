"""A server for the tests of one file, and OpenAI's unmodified client for it. The file says what is `served`."""

import openai
import pytest

from tests.tasks.serving import serving


@pytest.fixture(scope="module")
def url(served):
    with serving(served) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
