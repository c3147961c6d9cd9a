"""Stages of a codec as a job file writes them: what cannot be built is told with its stage."""

import pytest

from edge_runtime.codecs import BadCodec, find_codec


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((), "no stage"),
        (("topk",), "'topk' takes the share"),
        (("topk 0",), "'topk 0' takes the share"),
        (("topk 1.5",), "takes the share"),
        (("topk nan",), "'topk nan' has 'nan' where a number must stand"),
        (("topk 0.1 fe",), "has 'fe' where a number must stand; words it knows: .'ef'."),
        (("topk 0.1 ef ef",), "has 'ef' twice"),
        (("topk ef",), "takes the share"),
        (("topk ef 0.1",), "has '0.1', where one of .'ef'. may stand"),
        (("topk 0.1", "fp16", "rans", "rice"), "'rice' is unknown or out of place"),
        (("int8", "rice"), "'rice' is unknown or out of place"),
        (("rans 2",), "'rans 2' takes no argument"),
        (("threshold",), "takes the magnitude, above 0"),
        (("threshold 0",), "takes the magnitude, above 0"),
        (("threshold inf",), "where a number must stand"),
        (("ef21 2",), "takes the share of values to send, in .0, 1.$"),
        (("ef21 0.1 ef",), "has 'ef' where a number must stand"),
        (("svd",), "takes the energy to keep"),
        (("svd 1.1",), "takes the energy to keep"),
        (("svd 0.9 0.95",), "takes the energy to keep"),
        (("svd 0.9 0.95 0.5",), "whole number of rounds in 1 .. 1000000, got 0.5"),
        (("powersgd",), "takes the rank"),
        (("powersgd 0",), "takes the rank"),
        (("powersgd 2 ef",), "has 'ef' where a number must stand"),
        (("rows ef",), "'rows ef' takes no argument"),
        (("rows", "svd 0.9"), "'svd 0.9' is unknown or out of place"),
        (("ef 1",), "'ef 1' takes no argument"),
        (("fp16 3",), "'fp16 3' takes no argument"),
        (("int8 0",), "1 .. 65536"),
        (("int8 99999999999999",), "1 .. 65536"),
        (("rice",), "'rice' is unknown or out of place"),
        (("fp16", "topk 0.1"), "'topk 0.1' is unknown or out of place"),
        (("topk 0.1", "topk 0.1"), "out of place"),
        (("dgc 0.1",), "'dgc 0.1' takes the share"),
        (("dgc 0.1 1.0",), "takes the share"),
        (("dgc 0.1 0.9 ef",), "has 'ef' where a number must stand; words it knows: .'clip', 'warmup'."),
        (("dgc 0.1 0.9 clip",), "has '' where a number must stand"),
        (("dgc 0.1 0.9 clip 0",), "takes a norm above 0 after clip, got 0"),
        (("dgc 0.1 0.9 warmup 2.5",), "whole number of rounds in 1 .. 1000000 after warmup, got 2.5"),
        (("dgc 0.1 0.9 warmup 2 warmup 2",), "has 'warmup' twice"),
        (("qsgd",), "takes a whole number in 1 .. 127"),
        (("qsgd 4 8 2",), "takes at most 2"),
        (("sign 12",), "multiple of 8"),
        (("gzip",), "'gzip' is unknown or out of place"),
        (("dense", "fp16"), "'dense' is unknown or out of place"),
        (("",), "'' is unknown or out of place"),
    ],
)
def test_a_codec_that_cannot_be_built_names_the_stage(stages: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadCodec, match=says):
        find_codec(stages)
