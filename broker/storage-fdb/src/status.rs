//! What the cluster says about itself, for people. FoundationDB calls it no stable interface: what is missing is left
//! out.

use serde_json::Value;
use weir_storage::Result;

use crate::store::Shared;

/// Answered by the client, which asks the cluster controller.
const STATUS_KEY: &[u8] = b"\xff\xff/status/json";

/// Names and values.
pub(crate) async fn facts(shared: &Shared) -> Result<Vec<(&'static str, String)>> {
    let transaction = shared.plain_transaction()?;
    let status = shared.answer(transaction.get(STATUS_KEY, true), shared.deadline()).await?;
    let status = status.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or_default();
    Ok(extract(&status))
}

fn extract(status: &Value) -> Vec<(&'static str, String)> {
    let text = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let processes = status.pointer("/cluster/processes").and_then(Value::as_object);
    let mut versions: Vec<&str> = processes
        .into_iter()
        .flat_map(|processes| processes.values())
        .filter_map(|process| process.get("version").and_then(Value::as_str))
        .collect();
    versions.sort_unstable();
    versions.dedup();
    let facts = [
        ("server", (!versions.is_empty()).then(|| versions.join(", "))),
        ("processes", processes.map(|processes| processes.len().to_string())),
        ("redundancy", text("/cluster/configuration/redundancy_mode")),
        ("storage engine", text("/cluster/configuration/storage_engine")),
        ("data", text("/cluster/data/state/name")),
        ("limited by", text("/cluster/qos/performance_limited_by/name")),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_told() {
        let status = serde_json::json!({"cluster": {
            "processes": {"a": {"version": "7.3.79"}, "b": {"version": "7.3.79"}, "c": {}},
            "configuration": {"redundancy_mode": "triple"},
            "data": {"state": 3},
        }});
        let expected = [("server", "7.3.79"), ("processes", "3"), ("redundancy", "triple")];
        assert_eq!(extract(&status), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(extract(&Value::Null), []);
    }
}
