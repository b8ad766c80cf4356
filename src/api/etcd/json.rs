//! Protobuf's JSON, by the descriptors of the messages: 64-bit integers as text, bytes in base64, fields by
//! their names in the `.proto` and left out where they have their default, unknown members ignored.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::Value;

/// The bytes of a message that is written as JSON.
pub(super) fn to_message(descriptor: &MessageDescriptor, value: Value) -> Result<Bytes, String> {
    if !value.is_object() {
        return Err("expected a JSON object".to_owned());
    }
    strict(descriptor, &value)?;
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options)
        .map_err(|error| error.to_string())?;
    Ok(message.encode_to_vec().into())
}

/// A message's bytes as JSON, behind what is in `json` already.
pub(super) fn to_json(descriptor: &MessageDescriptor, message: Bytes, json: &mut BytesMut) -> Result<(), String> {
    let message = DynamicMessage::decode(descriptor.clone(), message).map_err(|error| error.to_string())?;
    let options =
        SerializeOptions::new().stringify_64_bit_integers(true).use_proto_field_name(true).skip_default_fields(true);
    let mut serializer = serde_json::Serializer::new(json.writer());
    message.serialize_with_options(&mut serializer, &options).map_err(|error| error.to_string())
}

/// Bytes are padded standard base64 and nothing near it: what a lenient reader makes of another alphabet
/// would be another key.
fn strict(descriptor: &MessageDescriptor, value: &Value) -> Result<(), String> {
    let Value::Object(members) = value else { return Ok(()) };
    for (name, value) in members {
        let field = descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
        let Some(field) = field else { continue };
        let values = match value {
            Value::Array(items) => &items[..],
            one => std::slice::from_ref(one),
        };
        match field.kind() {
            Kind::Bytes => {
                for text in values.iter().filter_map(Value::as_str) {
                    BASE64_STANDARD.decode(text).map_err(|error| format!("{name}: illegal base64 data: {error}"))?;
                }
            }
            Kind::Message(inner) => values.iter().try_for_each(|value| strict(&inner, value))?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pb;
    use super::*;
    use prost_reflect::DescriptorPool;
    use serde_json::json;

    fn message(name: &str) -> MessageDescriptor {
        DescriptorPool::decode(pb::DESCRIPTORS).unwrap().get_message_by_name(name).unwrap()
    }

    fn there_and_back(name: &str, value: Value) -> Result<String, String> {
        let descriptor = message(name);
        let mut json = BytesMut::new();
        to_json(&descriptor, to_message(&descriptor, value)?, &mut json)?;
        Ok(String::from_utf8(json.to_vec()).unwrap())
    }

    #[test]
    fn integers_are_text_zeros_are_left_out_and_names_are_the_protos() {
        let value = json!({"key": "Zm9v", "rangeEnd": "", "limit": 5, "revision": "9007199254740993",
            "sort_order": "DESCEND", "sort_target": 3, "keys_only": false, "unknown": [1]});
        let expected =
            r#"{"key":"Zm9v","limit":"5","revision":"9007199254740993","sort_order":"DESCEND","sort_target":"MOD"}"#;
        assert_eq!(there_and_back("etcdserverpb.RangeRequest", value).unwrap(), expected);
    }

    #[test]
    fn an_enumeration_out_of_range_is_kept_for_the_conversion_to_refuse() {
        let read = there_and_back("etcdserverpb.RangeRequest", json!({"sort_target": 7})).unwrap();
        assert_eq!(read, r#"{"sort_target":7}"#);
    }

    #[test]
    fn other_base64_is_refused_wherever_it_stands() {
        for bad in ["Zg", "_-8=", "Z g=", "Zh=="] {
            assert!(there_and_back("etcdserverpb.PutRequest", json!({"key": bad})).is_err(), "{bad}");
            let nested = json!({"success": [{"request_put": {"key": bad}}]});
            assert!(there_and_back("etcdserverpb.TxnRequest", nested).is_err(), "{bad}");
        }
        assert!(there_and_back("etcdserverpb.PutRequest", json!({"key": "+/8="})).is_ok());
    }

    #[test]
    fn only_objects_are_messages() {
        for value in [json!(null), json!([]), json!("a"), json!(1)] {
            assert!(there_and_back("etcdserverpb.PutRequest", value.clone()).is_err(), "{value}");
        }
    }
}
