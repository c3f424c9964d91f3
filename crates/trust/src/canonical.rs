//! OLPC canonical JSON (<http://wiki.laptop.org/go/Canonical_JSON>), the form over which TUF signs: no white
//! space, members sorted, integers only, and in strings only `"` and `\` escaped.
use serde_json::Value;

/// The value holds a number that is no integer of 64 bits, which canonical JSON can not express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("canonical JSON has no floats")]
pub struct FloatError;

/// The canonical form of a value.
///
/// # Errors
/// A float anywhere in the value.
pub fn canonical(value: &Value) -> Result<Vec<u8>, FloatError> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), FloatError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::Number(_) => return Err(FloatError),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // The order of `Map` depends on a feature that any crate of a build may switch on.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| name.as_str());
            out.push(b'{');
            for (i, (name, member)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(name, out);
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(json: &str, expected: &str) {
        let value: Value = serde_json::from_str(json).unwrap();
        assert_eq!(String::from_utf8(canonical(&value).unwrap()).unwrap(), expected);
    }

    #[test]
    fn golden_vectors() {
        check("{}", "{}");
        check(" [ ] ", "[]");
        check("null", "null");
        check("[true, false]", "[true,false]");
        check("-9223372036854775808", "-9223372036854775808");
        check("18446744073709551615", "18446744073709551615");
        check(
            r#"{"b": 1, "a": {"z": [1, 2, {"y": null}], "é": "x"}}"#,
            r#"{"a":{"z":[1,2,{"y":null}],"é":"x"},"b":1}"#,
        );
        check(r#"{"B": 1, "a": 2, "_": 3, "aa": 4}"#, r#"{"B":1,"_":3,"a":2,"aa":4}"#);
        check(r#""quote \" backslash \\ slash \/""#, r#""quote \" backslash \\ slash /""#);
        // Control characters stay as they are: canonical JSON is not always JSON.
        check(r#""line\nend\u0000""#, "\"line\nend\0\"");
        check(r#""\u20ac\ud83d\ude00""#, "\"€😀\"");
    }

    #[test]
    fn floats_are_refused_wherever_they_hide() {
        for json in ["1.0", "[0, 1e3]", r#"{"a": {"b": -0.5}}"#, "18446744073709551616", "-0"] {
            assert_eq!(canonical(&serde_json::from_str(json).unwrap()), Err(FloatError), "{json}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[a-z\"\\\\é ]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map("[a-zA-Z\"é]{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn without_control_characters_it_is_json_of_the_same_value(value in value()) {
            let bytes = canonical(&value).unwrap();
            let back: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&back, &value);
            prop_assert_eq!(canonical(&back).unwrap(), bytes);
        }
    }
}
