//! The command `weir-operator probe`: whether an HTTP address answers well. For health checks in an image that holds no other
//! program. Knows no cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Longest head of an answer.
const HEAD_BYTES_MAX: u64 = 16 * 1024;
const BETWEEN: Duration = Duration::from_millis(500);

/// Asks an HTTP address until it answers with a status below 300.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to ask, as http://HOST:PORT/PATH.
    url: String,
    /// How long to try, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Runs the command.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let rest = args.url.strip_prefix("http://");
    let rest =
        rest.with_context(|| format!("{:?} is no address to ask; allowed: http://HOST:PORT/PATH", args.url))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut last = anyhow::anyhow!("there was no answer");
    let asking = async {
        loop {
            match ask(host, path).await {
                Ok(()) => return,
                Err(error) => last = error,
            }
            sleep(BETWEEN).await;
        }
    };
    match timeout(Duration::from_secs(args.timeout), asking).await {
        Ok(()) => Ok(()),
        Err(_) => Err(last.context(format!("{} does not answer well", args.url))),
    }
}

async fn ask(host: &str, path: &str) -> Result<()> {
    let address = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut stream = TcpStream::connect(&address).await.with_context(|| format!("connect to {address}"))?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("send the request")?;
    let mut answer = Vec::new();
    stream.take(HEAD_BYTES_MAX).read_to_end(&mut answer).await.context("read the answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default();
    let status: u16 = match line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
    {
        Some(status) => status,
        None => bail!("it does not speak HTTP: {line:?}"),
    };
    ensure!((200..300).contains(&status), "it answers {line:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A server that gives one answer after the other, one a connection.
    async fn answering(answers: &'static [&'static str]) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/readyz", listener.local_addr()?);
        let serving = async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await?;
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await?;
                assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await?;
            }
            anyhow::Ok(())
        };
        tokio_util::task::TaskTracker::new().spawn(serving);
        Ok(url)
    }

    #[tokio::test]
    async fn it_asks_until_the_answer_is_good() -> Result<()> {
        let url = answering(&["HTTP/1.1 503 not yet\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nready"]).await?;
        run(&Args { url, timeout: 30 }).await
    }

    #[tokio::test]
    async fn what_it_saw_last_is_told() -> Result<()> {
        let url = answering(&["HTTP/1.1 503 not yet\r\n\r\n", "nonsense\r\n"]).await?;
        let host = url.trim_start_matches("http://").trim_end_matches("/readyz").to_owned();
        let first = ask(&host, "readyz").await.unwrap_err();
        assert!(first.to_string().contains("503 not yet"), "{first}");
        let second = ask(&host, "readyz").await.unwrap_err();
        assert!(second.to_string().contains("does not speak HTTP"), "{second}");
        let error = run(&Args { url: "https://a/b".into(), timeout: 1 }).await.unwrap_err();
        assert!(error.to_string().contains("allowed: http://HOST:PORT/PATH"), "{error}");
        Ok(())
    }
}
