"""One value after another of every type that PostgreSQL has, as SQL; for tests of the type rule.

Owns the list alone. What becomes of a value is said by the tests, and by ``reference_values.json``
for what the reference server makes of it.
"""

from __future__ import annotations

SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'ok', '2', 'two words', 'größe "x" \\');
CREATE TYPE appointment AS ENUM ('2', '10');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN small AS int CHECK (VALUE < 1000);
CREATE DOMAIN mail AS text;
CREATE DOMAIN moods AS mood;
CREATE DOMAIN numbers AS int[];
"""

# Types that clients see: what the reference does with them is normative (replication.md §4.2).
SYNCED: dict[str, tuple[str, ...]] = {
    "int2": ("-32768", "32767", "0"),
    "int4": ("-2147483648", "2147483647"),
    "int8": ("9007199254740991", "-9007199254740991"),
    "float4": ("1.1", "3.4e38", "1e-45", "-0", "16777217", "0.1"),
    "float8": ("0.1", "1e300", "5e-324", "-1.7976931348623157e308", "9007199254740993", "-0.0"),
    "numeric": ("1234567890123456.5", "0.1", "-0.50", "1e-10", "1"),
    "numeric(20,4)": ("1.5", "1234567890123456.7891"),
    "bool": ("true", "false"),
    "text": ("''", "' '", "'\\N'", "E'tab\\t nl\\n cr\\r b\\b f\\f v\\x0b \\\\ \\\\N'",
             "'größe 漢字 🙂'", "repeat('long ', 30000)", "E'\\u0001\\u001f'"),
    "varchar(10)": ("'x'", "''", "'  y  '"),
    "char(5)": ("'ab'", "''"),
    "uuid": ("'A0000000-0000-0000-0000-000000000001'",),
    "inet": ("'10.0.0.1'", "'10.0.0.1/8'", "'::1'"),
    "cidr": ("'10.0.0.0/8'",),
    "macaddr": ("'08-00-2b-01-02-03'",),
    "macaddr8": ("'08-00-2b-01-02-03-04-05'",),
    "pg_lsn": ("'16/B374D848'",),
    "mood": ("'ok'", "'2'", "'two words'", "E'größe \"x\" \\\\'"),
    "appointment": ("'10'", "'2'"),
    "json": ("'{\"b\": 1,  \"a\":2.0}'", "'null'", "'1'", "'1.0'", "'12345678901234567890'",
             "'\"\"'", "' [ ] '", "'true'", "'\"\\u0000\"'"),
    "jsonb": ("'{\"b\": 1,  \"a\":2.0}'", "'null'", "'1.0'", "'12345678901234567890'",
              "'\"a\\nb\"'"),
    "date": ("'2024-02-29'", "'0001-01-01'", "'1969-12-31'", "'9999-12-31'"),
    "timestamp": ("'2019-01-12 00:30:35.381101'", "'1969-12-31 23:59:59.9995'", "'2000-01-01'"),
    "timestamptz": ("'2019-01-12 00:30:35.381101+01'", "'2024-07-01 12:00:00 Asia/Kathmandu'",
                    "'1890-01-01 00:00:00+00:19:32'"),
    "time": ("'24:00:00'", "'12:34:56.7891'", "'23:59:59.999999'", "'00:00'"),
    "timetz": ("'24:00:00+02'", "'00:00:00-15:59'", "'12:00:00.5+05:30'"),
    "int4[]": ("'{1,NULL,-3}'", "'{}'", "'{{1,2},{3,4}}'", "'[0:1]={1,2}'"),
    "int8[]": ("'{9007199254740991}'",),
    "float8[]": ("'{1.5,2,-0.1}'",),
    "numeric[]": ("'{1.10,2.00,NULL}'",),
    "text[]": ("'{\"a b\",NULL,\"NULL\",\"\",\"c\\\"d\",\"e\\\\f\",\"{g}\",\"h,i\"}'",
               "ARRAY[ARRAY['a'],ARRAY[NULL]]", "E'{\"line\\nbreak\"}'"),
    "varchar(5)[]": ("'{a,\" b \"}'",),
    "bool[]": ("'{t,f,NULL}'",),
    "uuid[]": ("'{a0000000-0000-0000-0000-000000000001}'",),
    "mood[]": ("'{sad,\"two words\",NULL}'",),
    "json[]": ("ARRAY['{\"x\": 1}'::json, '[1]', 'null']",),
    "jsonb[]": ("ARRAY['{\"x\": 1}'::jsonb, '[2]']",),
    "date[]": ("'{2024-02-29}'",),
    "timestamp[]": ("'{\"2019-01-12 00:30:35.381101\"}'",),
    "timestamptz[]": ("'{\"2019-01-12 00:30:35.381101+01\"}'",),
    "time[]": ("'{12:34:56.7891}'",),
}  # fmt: skip

# Values of synced types for which the specification goes another way than the reference, or
# beyond it: it loses them on one of its two paths.
BEYOND: dict[str, tuple[str, ...]] = {
    "int8": ("9007199254740993", "-9223372036854775808", "9223372036854775807"),
    "float4": ("'NaN'", "'Infinity'"),
    "float8": ("'NaN'", "'-Infinity'"),
    "numeric": ("'NaN'", "'Infinity'", "9007199254740993", "repeat('9', 400)::numeric",
                # The reference server ends when these are streamed.
                "12345678901234567890.5", "100000000000000000000"),
    "date": ("'infinity'", "'-infinity'", "'0001-01-01 BC'", "'0044-03-15 BC'", "'10000-01-01'",
             "'5874897-12-31'", "'4713-01-01 BC'", "'0099-12-31'"),
    "timestamp": ("'infinity'", "'0044-03-15 12:00:00 BC'", "'294276-12-31 23:59:59.999999'",
                  "'0050-01-01'"),
    "timestamptz": ("'-infinity'", "'10000-01-01 00:00:00.000001+00'",
                    "'4713-01-01 00:00:00+00 BC'"),
    "timetz": ("'00:00:00+00:19:32'", "'23:00:00-01'"),
    "float8[]": ("'{NaN,Infinity}'",),
    "int8[]": ("'{9007199254740993}'",),
    # The reference server ends when these are streamed.
    "jsonb[]": ("ARRAY['\"s\"'::jsonb]", "ARRAY[NULL::jsonb]"),
    "timestamptz[]": ("'{NULL}'",),
    "date[]": ("'{infinity,\"0044-03-15 BC\"}'",),
    "text": ("repeat('x', 1000000)",),
    "float4[]": ("'{1.1,NULL}'",),
    "char(3)[]": ("'{a}'",),
    "inet[]": ("'{10.0.0.1/8,::1}'",),
    "timetz[]": ("'{24:00:00+02}'",),
    "appointment[]": ("'{2,10}'",),
}  # fmt: skip

# Types that are stored as text (bytea: bytes) and that clients never see. Not xml: it takes a build
# with libxml to make a value.
HIDDEN: dict[str, tuple[str, ...]] = {
    "bytea": ("'\\x00ff'", "''", "'\\xdeadbeef5c6e'"),
    "small": ("5",),
    "mail": ("E'tab\\t'",),
    "moods": ("'ok'",),
    "numbers": ("'{1,2}'",),
    "pair": ("ROW(1, 'a,b \"c\"')", "ROW(NULL, '')"),
    "interval": ("'1 day 2 hours'", "'-3 months 00:00:00.000001'", "'1 year'"),
    "money": ("12.34",),
    "bit(3)": ("B'101'",),
    "varbit": ("B'0101'", "B''"),
    "tsvector": ("'a fat cat'::tsvector",),
    "tsquery": ("'a & b'::tsquery",),
    "point": ("'(1,2.5)'",),
    "box": ("'(3,4),(1,2)'",),
    "line": ("'{1,2,3}'",),
    "lseg": ("'[(1,2),(3,4)]'",),
    "path": ("'((1,2),(3,4))'",),
    "polygon": ("'((1,2),(3,4),(5,6))'",),
    "circle": ("'<(1,2),3>'",),
    "oid": ("4294967295",),
    "name": ("'a name'",),
    "\"char\"": ("'c'", "''"),
    "regclass": ("'pg_class'",),
    "int4range": ("'[1,5)'", "'empty'"),
    "tstzrange": ("'[2024-01-01 00:00+02,infinity)'",),
    "int4multirange": ("'{[1,5),[7,9)}'",),
    "jsonpath": ("'$.a[*]'",),
    "xid": ("'7'",),
    "tid": ("'(1,2)'",),
    "int2vector": ("'1 2 3'",),
    "txid_snapshot": ("'10:20:10,14'",),
}  # fmt: skip

# Arrays of hidden types are JSON arrays of their elements' text, which clients do see.
HIDDEN_ARRAYS: dict[str, tuple[str, ...]] = {
    "bytea[]": ("ARRAY['\\x00ff'::bytea]",),
    "interval[]": ("'{\"1 day\"}'",),
    "point[]": ("'{\"(1,2)\"}'",),
    "box[]": ("'{(3,4),(1,2);(1,1),(0,0)}'",),
    "small[]": ("'{1,2}'",),
    "pair[]": ("ARRAY[ROW(1, 'x')::pair]",),
    "int4range[]": ("'{\"[1,5)\"}'",),
    "name[]": ("'{a,b}'",),
    "\"char\"[]": ("'{a}'",),
}  # fmt: skip

# Extensions that not every build of PostgreSQL brings along: type, literals.
EXTENSIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "citext": (("citext", "'MiXed'"), ("citext[]", "'{A,b}'")),
    "hstore": (("hstore", "'a=>1,b=>NULL'"),),
    "ltree": (("ltree", "'top.science'"),),
    "isn": (("isbn", "'0-14-044913-2'"), ("ean13", "'9780140449136'"), ("upc", "'036000291452'")),
    "vector": (("vector(3)", "'[1,2,3]'"),),
}


def everything() -> list[tuple[str, str]]:
    """(type, literal) of every list but that of the extensions; each type also as NULL."""
    kinds = {
        kind: (*SYNCED.get(kind, ()), *BEYOND.get(kind, ()))
        for kind in dict.fromkeys([*SYNCED, *BEYOND])
    }
    lists = {**kinds, **HIDDEN, **HIDDEN_ARRAYS}
    return [(kind, value) for kind, values in lists.items() for value in (*values, "NULL")]
