//! Bytes in JSON documents: one way for all that print or answer messages. Knows nothing of what they belong to.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Sets `name` of an object to these bytes: as they are if they are text, else `nameBase64`.
pub(crate) fn set_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(_) => object[format!("{name}Base64")] = STANDARD.encode(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_are_text_or_base64() {
        let mut object = json!({});
        set_bytes(&mut object, "payload", b"one");
        set_bytes(&mut object, "key", &[0xff, 0]);
        assert_eq!(object, json!({"payload": "one", "keyBase64": "/wA="}));
    }
}
