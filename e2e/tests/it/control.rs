//! The client drivers against mosquitto's broker: what fails here is the driver's fault, not Weir's.

use anyhow::{Context, Result};
use weir_e2e::clients::Client;
use weir_e2e::endpoint::Endpoint;
use weir_e2e::mosquitto::Mosquitto;

use crate::matrix::matrix;
use crate::scenarios::{backlog, downgrade, live, retained, will};

async fn against_mosquitto(
    client: Client,
    scenario: impl AsyncFnOnce(Client, &Endpoint) -> Result<()>,
) -> Result<()> {
    let broker = Mosquitto::start().await?;
    scenario(client, &broker.mqtt().into()).await.with_context(|| client.to_string())
}

matrix!(against_mosquitto; [live, downgrade, retained, will, backlog]);
