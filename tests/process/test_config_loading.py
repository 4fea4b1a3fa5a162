from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, SecretStr

from qgstream.errors import ConfigError
from qgstream.process.config_loading import Catalogue, Found, Reading
from qgstream.settings import Section


class Inner(Section):
    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})

    user: str
    password: SecretStr = SecretStr("")


class Shelf(Section):
    label: str
    from_: str | None = Field(None, alias="from")
    boxes: int = 1


class Door(Section):
    secret_fields: ClassVar[frozenset[str]] = frozenset({"code"})

    to: str
    code: dict[str, str] = Field({})


class Shop(Section):
    secret_fields: ClassVar[frozenset[str]] = frozenset({"keys"})

    name: str = Field("shop", min_length=1)
    colours: tuple[str, ...] = ()
    shelves: tuple[Shelf, ...] = ()
    keys: dict[str, SecretStr] = Field({})
    login: Inner | None = None


class Limits(Section):
    size: int = Field(10, ge=0)
    rate: float = 1.5
    strict: bool = False
    mode: Literal["a", "b"] = "a"
    path: Path | None = None
    either: int | bool = 0


class Model(Section):
    shop: Shop = Shop()
    limits: Limits = Limits()
    doors: tuple[Door, ...] = ()


CATALOGUE = Catalogue(Model, environment_prefix="T_")


def reading() -> Reading[Model]:
    return Reading(Model, CATALOGUE)


def problems(read: Reading[Model]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read.finish()
    return caught.value.problems


def from_file(path: Path, text: str | bytes) -> Reading[Model]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    read = reading()
    read.read_file(path)
    return read


def from_environment(**environ: str) -> Reading[Model]:
    read = reading()
    read.read_environment(environ)
    return read


def from_flag(key: str, value: object) -> Reading[Model]:
    read = reading()
    read.read_flag(key, value, f"--set {key}")
    return read


class TestFile:
    def test_gives_values_with_their_source(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        read = from_file(path, '[shop]\ncolours = ["red"]\n[shop.login]\nuser = "me"\n[limits]\nsize = 3\n')
        model = read.finish()
        assert (model.shop.colours, model.limits.size) == (("red",), 3)
        assert model.shop.login is not None
        assert model.shop.login.user == "me"
        assert read.found["limits.size"] == Found(3, f"file {path}")

    def test_may_begin_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        assert from_file(tmp_path / "c.toml", b"\xef\xbb\xbf[limits]\r\nsize = 3\r\n").finish().limits.size == 3

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[limits]\nsize = \n", "not TOML: Invalid value (at line 2, column 8)"),
            ("[limits]\nsize = [1,\n", "not TOML: Invalid value (at line 3, column 1, the end)"),
            ("[limits]\nsize = 1\nsize = 2\n", "not TOML: Cannot overwrite a value (at line 3, column 9)"),
            (b"[shop]\nname = '\xff'", "got a byte that is not UTF-8 at offset 15, expected UTF-8 text"),
            ("[limits]\nsiez = 1\n", "limits.siez: unknown key; did you mean limits.size?"),
            ("[shop]\nsize = 1\n", "shop.size: unknown key; did you mean limits.size?"),
            ("size = 1\n", "size: unknown key; did you mean limits.size?"),
            ("siez = 1\n", "siez: unknown key; did you mean limits.size?"),
            ("[limit]\nsize = 1\n", "limit: unknown section; did you mean limits?"),
            ("[xyzzy]\nsize = 1\n", "xyzzy: unknown section"),
            ("limits = 5\n", "limits: got int, expected a table [limits]"),
            ('[limits]\nsize = "many"\n', "limits.size: got 'many', expected a valid integer"),
            ("[limits]\nsize = 1.5\n", "limits.size: got 1.5, expected a valid integer"),
            ("[limits]\nsize = true\n", "limits.size: got 'true', expected a valid integer"),
            ("[limits]\nrate = false\n", "limits.rate: got 'false', expected a valid number"),
            ("[limits]\nrate = nan\n", "limits.rate: got nan, expected a finite number"),
            ("[limits]\nsize = -1\n", "limits.size: got -1, expected greater than or equal to 0"),
            ('[limits]\nmode = "c"\n', "limits.mode: got 'c', expected 'a' or 'b'"),
            ("[limits]\npath = 5\n", "limits.path: got 5, expected a valid path"),
            ('[limits]\neither = "x"\n', "limits.either: got 'x', expected a valid integer"),
            ('[shop]\nname = ""\n', "shop.name: got '', expected at least 1 character"),
            ("[shop]\nname = true\n", "shop.name: got True, expected a valid string"),
            ('[shop]\ncolours = "red"\n', "shop.colours: got 'red', expected a valid list"),
            ('[shop]\ncolours = ["red", 2]\n', "shop.colours[1]: got 2, expected a valid string"),
            (f'[shop]\ncolours = ["{"x" * 300}", 2, "{"x" * 300}"]\nname = 1', "shop.colours[1]: got 2"),
            ("[shop.login]\n", "shop.login.user: not set, expected a value"),
            ("[shop.login]\nuser = 5\npassword = 7\n", "shop.login.user: got 5, expected a valid string"),
            ("[[shop.shelves]]\nlabl = 1\n", "shop.shelves[0].labl: unknown key; did you mean label?"),
            ("[[shop.shelves]]\nform = 1\n", "shop.shelves[0].form: unknown key; did you mean from?"),
            ("[[shop.shelves]]\nlabel = 'a'\nxyz = 1\n", "shop.shelves[0].xyz: unknown key"),
            ("[[shop.shelves]]\n", "shop.shelves[0].label: not set, expected a value"),
            ("[[shop.shelves]]\nlabel = 'a'\n[[shop.shelves]]\nlabel = 5\n", "shop.shelves[1].label: got 5, expected"),
            ("[shop]\nshelves = ['a']\n", "shop.shelves[0]: got 'a', expected a table"),
            ("[shop.shelves]\nlabel = 'a'\n", "shop.shelves: got one table, expected a list of them: [[shop.shelves]]"),
            ("[[door]]\nto = 'a'\n", "door: unknown key; did you mean doors?"),
            ("[doors]\nto = 'hush'\n", "doors: got one table, expected a list of them: [[doors]]"),
            ("doors = 'hush'\n", "doors: got a value that is not shown, expected a valid list"),
            ("doors = ['hush']\n", "doors[0]: got a value that is not shown, expected a table"),
            ("[[doors]]\nto = 5\n", "doors[0].to: got 5, expected a valid string"),
            ("[[doors]]\nto = 'x'\ncode = 'hush'\n", "doors[0].code: got a value that is not shown, expected a table"),
            ("[[doors]]\nto = 'x'\ncode = { a = 5 }\n", "doors[0].code.a: got a value that is not shown, expected"),
        ],
    )
    def test_problems_name_the_file_the_key_and_what_was_expected(
        self, tmp_path: Path, text: str | bytes, said: str
    ) -> None:
        path = tmp_path / "c.toml"
        assert f"file {path}: {said}" in "\n".join(problems(from_file(path, text)))

    def test_gives_lists_of_tables(self, tmp_path: Path) -> None:
        text = "[[shop.shelves]]\nlabel = 'a'\n[[shop.shelves]]\nfrom = 'b'\nlabel = 'c'\n[[doors]]\nto = 'd'\n"
        model = from_file(tmp_path / "c.toml", text).finish()
        assert [(shelf.label, shelf.from_) for shelf in model.shop.shelves] == [("a", None), ("c", "b")]
        assert [door.to for door in model.doors] == ["d"]

    def test_that_cannot_be_read(self, tmp_path: Path) -> None:
        read = reading()
        read.read_file(tmp_path / "none.toml")
        read.read_file(tmp_path)
        assert problems(read) == [
            f"file {tmp_path}/none.toml: cannot be read: No such file or directory",
            f"file {tmp_path}: cannot be read: Is a directory",
        ]

    def test_all_problems_are_found_at_once(self, tmp_path: Path) -> None:
        text = '[limit]\n[limits]\nsiez = 1\nsize = "x"\nrate = "y"\n[shop]\nname = 5\n'
        read = from_file(tmp_path / "c.toml", text)
        read.read_environment({"T_LIMITS__STRICT": "perhaps"})
        read.read_flag("nothing", 5, "--set nothing")
        assert len(problems(read)) == 7


class TestEnvironment:
    @pytest.mark.parametrize(
        ("name", "text", "key", "value"),
        [
            ("T_LIMITS__SIZE", "7", "size", 7),
            ("T_LIMITS__RATE", "0.25", "rate", 0.25),
            ("T_LIMITS__STRICT", "true", "strict", True),
            ("T_LIMITS__STRICT", "0", "strict", False),
            ("T_LIMITS__PATH", "", "path", None),
            ("T_LIMITS__PATH", "/x", "path", Path("/x")),
        ],
    )
    def test_text_becomes_what_the_key_takes(self, name: str, text: str, key: str, value: object) -> None:
        assert getattr(from_environment(**{name: text}).finish().limits, key) == value

    @pytest.mark.parametrize(
        ("text", "colours"),
        [
            ("red", ("red",)),
            ("red, dark blue,", ("red", "dark blue")),
            ("", ()),
            ('["red", "a,b"]', ("red", "a,b")),
            ("['red']", ("red",)),
        ],
    )
    def test_a_list_is_json_or_toml_or_separated_by_commas(self, text: str, colours: tuple[str, ...]) -> None:
        assert from_environment(T_SHOP__COLOURS=text).finish().shop.colours == colours

    def test_a_table_is_json_or_toml(self) -> None:
        for text in ('{"a": "b"}', '{a = "b"}'):
            assert from_environment(T_SHOP__KEYS=text).finish().shop.keys == {"a": SecretStr("b")}

    @pytest.mark.parametrize("text", ['[{"to": "a"}, {"to": "b"}]', '[{to = "a"}, {to = "b"}]'])
    def test_a_list_of_tables_is_json_or_toml(self, text: str) -> None:
        assert [door.to for door in from_environment(T_DOORS=text).finish().doors] == ["a", "b"]
        assert from_environment(T_DOORS="[]").finish().doors == ()

    def test_reaches_into_nested_tables(self) -> None:
        login = from_environment(T_SHOP__LOGIN__USER="me", T_SHOP__LOGIN__PASSWORD="[x").finish().shop.login
        assert login == Inner(user="me", password=SecretStr("[x"))

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("T_SIZE", "; did you mean T_LIMITS__SIZE?"),
            ("T_LIMITS_SIZE", "; did you mean T_LIMITS__SIZE?"),
            ("T_LIMITS__SIEZ", "; did you mean T_LIMITS__SIZE?"),
            ("T_limits__size", "; did you mean T_LIMITS__SIZE?"),
            ("T_LIMITS", ""),
            ("T_XYZZY", ""),
        ],
    )
    def test_an_unknown_name_is_a_warning(self, name: str, hint: str) -> None:
        read = from_environment(**{name: "tcp://10.0.0.1:80"})
        read.finish()
        assert read.warnings == [f"environment {name}: unknown name, ignored{hint}"]

    def test_other_names_are_nobodys_business(self) -> None:
        read = reading()
        read.read_environment({"PATH": "/bin", "T_FILE": "x"}, ignore=["T_FILE"])
        assert (read.finish(), read.warnings) == (Model(), [])

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("T_LIMITS__SIZE", "many", "limits.size: got 'many', expected a valid integer"),
            ("T_SHOP__COLOURS", "[red", "shop.colours: got '[red', expected JSON, TOML, or values separated by commas"),
            (
                "T_SHOP__KEYS",
                "{hush",
                "shop.keys: got '(not shown)', expected JSON, TOML, or values separated by commas",
            ),
            ("T_SHOP__KEYS", '["hush"]', "shop.keys: got a value that is not shown, expected a table"),
            ("T_DOORS", '[{"to": hush', "doors: got '(not shown)', expected JSON or TOML"),
            ("T_DOORS", '{"to": "hush"}', "doors: got one table, expected a list of them: [[doors]]"),
            ("T_DOORS", "hush", "doors[0]: got a value that is not shown, expected a table"),
            ("T_SHOP__SHELVES", '[{"label"', "shop.shelves: got '[{\"label\"', expected JSON or TOML"),
            ("T_SHOP__LOGIN__PASSWORD", "hush", "shop.login.user: not set, expected a value"),
        ],
    )
    def test_problems_name_the_variable(self, name: str, text: str, said: str) -> None:
        assert problems(from_environment(**{name: text})) == [f"environment {name}: {said}"]


class TestFlags:
    @pytest.mark.parametrize(
        ("key", "value", "got"),
        [
            ("limits.size", "7", 7),
            ("limits.size", 7, 7),
            ("limits.rate", "2", 2.0),
            ("limits.strict", "true", True),
            ("shop.name", "12", "12"),
            ("shop.name", "'a b'", "a b"),
            ("shop.name", '"a\\tb"', "a\tb"),
            ("shop.name", "'open", "'open"),
            ("shop.colours", '["red"]', ("red",)),
            ("shop.colours", "red,blue", ("red", "blue")),
        ],
    )
    def test_text_is_a_toml_value_or_as_it_stands(self, key: str, value: object, got: object) -> None:
        section, name = key.split(".")
        assert getattr(getattr(from_flag(key, value).finish(), section), name) == got

    def test_an_unknown_key_is_a_problem(self) -> None:
        assert problems(from_flag("limits.siez", "hush")) == [
            "flag --set limits.siez: limits.siez: unknown key; did you mean limits.size?"
        ]


def test_what_is_read_later_wins(tmp_path: Path) -> None:
    read = from_file(tmp_path / "c.toml", "[limits]\nsize = 1\nrate = 1\nstrict = true\n")
    read.read_environment({"T_LIMITS__SIZE": "2", "T_LIMITS__RATE": "2"})
    read.read_flag("limits.size", "3", "--size")
    assert read.finish().limits == Limits(size=3, rate=2, strict=True)
    assert [read.found[f"limits.{key}"].source.split()[0] for key in ("size", "rate", "strict")] == [
        "flag", "environment", "file",
    ]  # fmt: skip


def test_an_empty_table_and_a_key_of_it_from_elsewhere(tmp_path: Path) -> None:
    read = from_file(tmp_path / "c.toml", "[shop.login]\n")
    read.read_environment({"T_SHOP__LOGIN__USER": "me"})
    assert read.finish().shop.login == Inner(user="me")


@pytest.mark.parametrize(
    ("key", "value", "visible"),
    [
        ("shop.keys", {"a": SecretStr("hush")}, "(not shown)"),
        ("shop.keys", {}, {}),
        ("shop.login.password", SecretStr("hush"), "(not shown)"),
        ("shop.login.user", "me", "me"),
        ("shop.name", "redis://:hush@host:1/0", "redis://(not shown)@host:1/0"),
        ("shop.name", "amqp://me:hu@sh@host", "amqp://(not shown)@host"),
        ("shop.name", "https://host/@me", "https://host/@me"),
        ("shop.name", "redis://host/0?password=hush&stream=a", "redis://host/0?password=(not shown)&stream=a"),
        ("shop.name", "https://host/a?x=1&access_token=hush#b", "https://host/a?x=1&access_token=(not shown)#b"),
        ("shop.name", "https://host/?API-Key=hush", "https://host/?API-Key=(not shown)"),
        ("shop.name", "https://host/?key=hush&sig=hush", "https://host/?key=(not shown)&sig=(not shown)"),
        ("shop.name", "nats://host?keyfile=/k&certfile=/c", "nats://host?keyfile=/k&certfile=/c"),
        ("shop.colours", ("red", "//me:hush@host"), ["red", "//(not shown)@host"]),
        (
            "shop.shelves",
            (Shelf.model_validate({"label": "a", "from": "//me:hush@host"}),),
            [{"label": "a", "from": "//(not shown)@host", "boxes": 1}],
        ),
        (
            "doors",
            (Door(to="a", code={"x": "hush"}), Door(to="b")),
            [{"to": "a", "code": "(not shown)"}, {"to": "b", "code": {}}],
        ),
        ("limits.path", Path("/x"), "/x"),
        ("limits.path", None, None),
        ("limits.size", 7, 7),
    ],
)
def test_what_may_be_shown(key: str, value: object, visible: object) -> None:
    assert CATALOGUE.keys[key].visible(value) == visible


def test_a_long_value_is_cut() -> None:
    (problem,) = problems(from_environment(T_LIMITS__SIZE="9" * 5000 + "x"))
    assert problem == f"environment T_LIMITS__SIZE: limits.size: got '{'9' * 99}..., expected a shorter integer"
