"""Every public docstring has examples that run, and the stubs name what there is."""

import ast
import contextlib
import doctest
import inspect
import re
from pathlib import Path

import pytest

import fastsoftmax
from fastsoftmax import _core, reference, special

PACKAGE = Path(fastsoftmax.__file__).parent
PUBLIC = [(module, name) for module in (fastsoftmax, special) for name in module.__all__]
IDS = [f"{module.__name__}.{name}" for module, name in PUBLIC]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=IDS)
def test_examples(module, name, threads):
    member = getattr(module, name)
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(member, name, module=False) if test.examples]
    assert tests, "the docstring has no example"
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize(("module", "name"), [pair for pair in PUBLIC if pair[0] is fastsoftmax], ids=str)
def test_every_parameter_is_described(module, name):
    member = getattr(module, name)
    text = inspect.getdoc(member)
    first, *rest = text.splitlines()
    assert first.endswith("."), "the first line is a sentence"
    assert not rest or not rest[0], "then comes an empty line"
    parameters = [
        name for name, p in inspect.signature(member).parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    section = text.split("Parameters\n----------\n")[-1].split("\n\nReturns\n")[0] if parameters else ""
    headings = re.findall(r"^(\S.*)$", section, re.M)
    described = {part.strip() for heading in headings for part in heading.split(":")[0].split(",")}
    assert set(parameters) <= described


@pytest.mark.parametrize("name", reference.__all__)
def test_reference_is_described(name):
    text = inspect.getdoc(getattr(reference, name))
    assert text
    assert len(text.splitlines()[0]) <= 110


def test_public_names_exist():
    for module, name in PUBLIC:
        assert callable(getattr(module, name))
    assert fastsoftmax.__version__
    assert sorted(special.__all__) == ["log_softmax", "logsumexp", "softmax"]
    assert sorted(fastsoftmax.__all__) == [
        "get_config", "get_num_threads", "log_softmax", "log_softmax_vjp", "logsumexp", "num_threads",
        "selected_log_softmax", "set_num_threads", "show_config", "softmax", "softmax_cross_entropy",
        "softmax_cross_entropy_grad", "softmax_cross_entropy_grad_hess", "softmax_cross_entropy_value_and_grad",
        "softmax_jacobian", "softmax_vjp",
    ]  # fmt: skip


def test_stubs_name_what_there_is():
    assert (PACKAGE / "py.typed").exists()
    stubs = sorted(PACKAGE.glob("*.pyi"))
    assert stubs
    for stub in stubs:
        module = fastsoftmax if stub.stem == "__init__" else getattr(fastsoftmax, stub.stem)
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                member = getattr(module, node.name)
                arguments = node.args
                named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                named += [arguments.kwarg.arg] if arguments.kwarg else []
                with contextlib.suppress(ValueError):  # compiled without a signature
                    assert list(inspect.signature(member).parameters) == named, node.name
            elif isinstance(node, ast.AnnAssign):
                assert hasattr(module, node.target.id)
    body = ast.parse((PACKAGE / "_core.pyi").read_text()).body
    stubbed = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    stubbed |= {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    assert {name for name, member in vars(_core).items() if inspect.isroutine(member)} <= stubbed


# A change here breaks its callers.
SIGNATURES = {
    "softmax": "(x, /, axis=-1, *, temperature=1.0, where=None, out=None)",
    "log_softmax": "(x, /, axis=-1, *, temperature=1.0, where=None, out=None)",
    "logsumexp": "(x, /, axis=-1, *, b=None, keepdims=False, return_sign=False, where=None, out=None)",
    "softmax_vjp": "(p, g, /, axis=-1, *, out=None)",
    "log_softmax_vjp": "(logp, g, /, axis=-1, *, out=None)",
    "softmax_jacobian": "(p, /, axis=-1)",
    "softmax_cross_entropy": "(logits, labels, /, axis=-1, **loss_options)",
    "softmax_cross_entropy_grad": "(logits, labels, /, axis=-1, *, grad_loss=None, out=None, **loss_options)",
    "softmax_cross_entropy_value_and_grad": "(logits, labels, /, axis=-1, *, grad_loss=None, out=None, **loss_options)",
    "softmax_cross_entropy_grad_hess": "(logits, labels, /, axis=-1, *, factor=1.0, min_hess=0.0, grad_out=None, "
    "hess_out=None, weight=None, sample_weight=None)",
    "selected_log_softmax": "(logits, index, /, axis=-1, *, temperature=1.0, out=None)",
    "num_threads": "(n)",
    "set_num_threads": "(n)",
    "get_num_threads": "()",
    "show_config": "()",
    "get_config": "()",
}


def without_annotations(function):
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", fastsoftmax.__all__)
def test_signatures(name):
    assert without_annotations(getattr(fastsoftmax, name)) == SIGNATURES[name]


def test_special_signatures():
    assert without_annotations(special.softmax) == "(x, axis=None)"
    assert without_annotations(special.log_softmax) == "(x, axis=None)"
    assert without_annotations(special.logsumexp) == "(a, axis=None, b=None, keepdims=False, return_sign=False)"
