//! One test for each foreign client, version and scenario.

/// `matrix!(check; scenario, ...)` makes a module for each client in each version, and in it a test for each
/// scenario that calls `check(client, scenario)`.
macro_rules! matrix {
    ($check:ident; $scenarios:tt) => {
        matrix!(@ mosquitto_311, Mosquitto, V311, $check, $scenarios);
        matrix!(@ mosquitto_5, Mosquitto, V5, $check, $scenarios);
        matrix!(@ paho_311, Paho, V311, $check, $scenarios);
        matrix!(@ paho_5, Paho, V5, $check, $scenarios);
        matrix!(@ npm_mqtt_311, NpmMqtt, V311, $check, $scenarios);
        matrix!(@ npm_mqtt_5, NpmMqtt, V5, $check, $scenarios);
        matrix!(@ rumqttc_311, Rumqttc, V311, $check, $scenarios);
        matrix!(@ rumqttc_5, Rumqttc, V5, $check, $scenarios);
    };
    (@ $client:ident, $kind:ident, $version:ident, $check:ident, [$($scenario:ident),* $(,)?]) => {
        mod $client {
            use weir_e2e::clients::{Client, Kind, Version};

            const CLIENT: Client = Client { kind: Kind::$kind, version: Version::$version };

            $(
                #[tokio::test]
                async fn $scenario() -> anyhow::Result<()> {
                    super::$check(CLIENT, super::$scenario).await
                }
            )*
        }
    };
}

pub(crate) use matrix;
