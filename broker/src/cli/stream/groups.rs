//! `weir stream groups`: the consumer groups of a stream and how far each is behind; forgets one.

use clap::Args;
use serde_json::{Value, json};
use weir_proto::admin::v1 as wire;

use crate::cli::admin::AdminArgs;
use crate::cli::output::{Format, Output, Table, harmless, millis, time};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct GroupsArgs {
    /// Name of the stream
    name: String,
    /// Forget this group and its positions, instead of showing all
    #[arg(long, value_name = "GROUP")]
    delete: Option<String>,
    /// Also if it has members; they get no more messages
    #[arg(long, requires = "delete")]
    force: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &GroupsArgs) -> anyhow::Result<()> {
    let mut client = args.admin.connect().await?;
    let mut output = Output::stdout();
    if let Some(group) = &args.delete {
        let (stream, group, force) = (args.name.clone(), group.clone(), args.force);
        let request = wire::DeleteGroupRequest { stream, group: group.clone(), force };
        args.admin.answer(client.delete_group(request)).await?;
        match args.admin.output {
            Format::Json => output.json(&json!({"stream": args.name, "deleted": group}))?,
            Format::Text => output.text(&format!("group {} deleted\n", harmless(&group)))?,
        }
        return Ok(());
    }
    let request = wire::ListGroupsRequest { stream: args.name.clone() };
    let response = args.admin.answer(client.list_groups(request)).await?;
    match args.admin.output {
        Format::Json => {
            let groups: Value = response.groups.iter().map(group_json).collect();
            output.json(&json!({"stream": args.name, "groups": groups}))?;
        }
        Format::Text => output.text(&text(&args.name, &response.groups))?,
    }
    Ok(())
}

fn text(stream: &str, groups: &[wire::Group]) -> String {
    if groups.is_empty() {
        let stream = harmless(stream);
        return format!(
            "stream {stream} has no groups; a subscription to $share/GROUP/$stream/{stream} makes one\n"
        );
    }
    let mut all = Table::new(&["GROUP", "MEMBERS#", "LAG#", "BEHIND#"]);
    let mut shards =
        Table::new(&["GROUP", "SHARD#", "POSITION#", "END#", "LAG#", "BEHIND#", "STORED", "MEMBER"]);
    for group in groups {
        let name = harmless(&group.name);
        let (members, lag) = (group.members.len().to_string(), group.lag.to_string());
        all.row(vec![name.clone(), members, lag, behind(group.lag_millis)]);
        for shard in &group.shards {
            let member = if shard.member.is_empty() { "-".to_owned() } else { harmless(&shard.member) };
            let mut row = vec![name.clone(), shard.shard.to_string()];
            row.extend([shard.position, shard.end, shard.lag].map(|number| number.to_string()));
            row.extend([behind(shard.lag_millis), time(shard.committed_micros), member]);
            shards.row(row);
        }
    }
    format!("{all}\n{shards}")
}

/// How old the oldest message is that was not acknowledged.
pub(super) fn behind(age: u64) -> String {
    match age {
        0 => "-".to_owned(),
        1..1000 => millis(age),
        // People want no milliseconds of minutes.
        _ => millis(age / 1000 * 1000),
    }
}

pub(super) fn group_json(group: &wire::Group) -> Value {
    let shards = group.shards.iter().map(|shard| {
        json!({
            "shard": shard.shard,
            "position": shard.position,
            "end": shard.end,
            "lag": shard.lag,
            "lagMillis": shard.lag_millis,
            "member": shard.member,
            "generation": shard.generation,
            "committedMicros": shard.committed_micros,
        })
    });
    json!({
        "name": group.name,
        "members": group.members,
        "lag": group.lag,
        "lagMillis": group.lag_millis,
        "shards": shards.collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_shown_with_their_shards() {
        let shard = wire::GroupShard {
            shard: 1,
            position: 7,
            end: 9,
            lag: 2,
            lag_millis: 61_234,
            member: String::new(),
            generation: 3,
            committed_micros: 1_700_000_000_000_000,
        };
        let group = wire::Group {
            name: "workers".to_owned(),
            members: vec!["a".to_owned()],
            lag: 2,
            lag_millis: 61_234,
            shards: vec![shard],
        };
        let expected = "\
GROUP    MEMBERS  LAG  BEHIND
workers        1    2     61s

GROUP    SHARD  POSITION  END  LAG  BEHIND  STORED                MEMBER
workers      1         7    9    2     61s  2023-11-14T22:13:20Z  -
";
        assert_eq!(text("s", &[group]), expected);
        assert!(text("s", &[]).contains("$share/GROUP/$stream/s"));
    }
}
