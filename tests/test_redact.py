"""No key reaches a copy of a configuration."""

from ssl_weighting.app.redact import without_secrets


def test_what_is_named_like_a_secret_is_left_out():
    config = {
        "api_key": "abc",
        "hf_token": "abc",
        "logger": [{"init_args": {"settings": {"apikey": "abc", "password": "abc"}}}],
        "client_secret": "abc",
        "tokenizer": "bert",
        "max_tokens": 3,
        "token": None,
        "key": "kept",
    }
    clean = without_secrets(config)
    assert "abc" not in str(clean)
    assert clean["tokenizer"] == "bert"
    assert clean["max_tokens"] == 3
    assert clean["key"] == "kept"
    assert "token" in clean, "nothing is set there, so nothing is hidden"


def test_passwords_in_addresses():
    assert without_secrets({"url": ["https://me:secret@example.org/x"]}) == {"url": ["https://example.org/x"]}
    assert without_secrets("someone@example.org") == "someone@example.org"


def test_the_rest_stays_as_it_is():
    config = {"a": [1, 2.5, None, True, {"b": "text"}], "c": float("inf")}
    assert without_secrets(config) == config
