import pickle

from sidestep.errors import SidestepError


def test_a_message_is_one_line_whatever_it_quotes():
    error = SidestepError("photo \x1b[2J\r\nerror: none\ud800\0: no such file; größer")
    assert str(error) == r"photo \x1b[2J\r\nerror: none\ud800\x00: no such file; größer"
    assert str(error).encode() == str(pickle.loads(pickle.dumps(error))).encode()


def test_a_message_has_a_length():
    assert str(SidestepError("a.json: " + "x" * 10_000 + ": no such file")).endswith("x: no such file")
    assert len(str(SidestepError("x" * 1_000_000))) < 2100
