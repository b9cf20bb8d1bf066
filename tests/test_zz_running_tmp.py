import sys; sys.path.insert(0,"/work/main/tests")
import pytest
import test_vllm as t
from test_vllm import test_vllm_gives_the_texts_of_the_model_in_process
@pytest.fixture(scope="module")
def vllm(): yield "http://127.0.0.1:18733/v1"
pytestmark=[]
