//! One script for each rule of the specification, named after it.

use crate::script::check;

#[test]
fn connack_tells_what_the_server_grants() {
    check(
        "connect v5 expiry=100 our-expiry-max=60 our-receive-max=5 our-alias-max=3 our-keep-alive-max=30 assigned=c1 present
         < connack present expiry=60 receive-max=5 assigned=c1 alias-max=3 keep-alive=30",
    );
    check(
        "connect v5 expiry=60 our-expiry-max=60 keep-alive=30 our-keep-alive-max=30
         < connack",
    );
    check(
        "connect v3 our-receive-max=5 our-alias-max=3 our-keep-alive-max=30
         < connack",
    );
}

// Conformance v5: 3.1.2-22, 3.2.2-22
// Conformance v311: 3.1.2-24
#[test]
fn mqtt_3_1_2_22_keep_alive_times_one_and_a_half() {
    check(
        "connect v5 keep-alive=10 will
         < connack
         + 14999ms
         > pingreq
         < pingresp
         + 14999ms
         + 1ms
         ! closed KeepAlive will=true expiry=0
         < disconnect 0x8d
         + 99999ms",
    );
    check(
        "connect v3 clean keep-alive=10
         < connack
         + 15000ms
         ! closed KeepAlive will=false expiry=0",
    );
    check(
        "connect v5 keep-alive=0
         < connack
         + 99999999ms",
    );
    check(
        "connect v5 keep-alive=0 our-keep-alive-max=2
         < connack keep-alive=2
         + 3000ms
         ! closed KeepAlive will=false expiry=0
         < disconnect 0x8d",
    );
}

#[test]
fn keep_alive_does_not_run_while_we_do_not_read() {
    check(
        "connect v3 clean keep-alive=10 our-receive-max=1
         < connack
         > publish q1 #1
         ! publish q1 #1 topic=t payload=x
         = wants-read
         : false
         + 15000ms
         = published 0
         < puback 1
         = wants-read
         : true
         + 14999ms
         = read-paused
         + 14999ms
         + 1ms
         ! closed KeepAlive will=false expiry=0",
    );
}

// Conformance v5: 3.1.0-2
#[test]
fn mqtt_3_1_0_2_second_connect() {
    check(
        r#"connect v5 will expiry=7
         < connack
         > connect
         : second CONNECT
         ! closed Protocol(ProtocolError) will=true expiry=7
         < disconnect 0x82 "second CONNECT"
         > pingreq"#,
    );
    check(
        "connect v3 will
         < connack
         > connect
         : second CONNECT
         ! closed Protocol(ProtocolError) will=true expiry=4294967295",
    );
}

#[test]
fn packets_that_only_a_server_sends() {
    for packet in ["connack", "suback", "unsuback", "pingresp"] {
        check(&format!(
            "connect v3 clean
             < connack
             > {packet}
             : packet that only a server sends
             ! closed Protocol(ProtocolError) will=false expiry=0"
        ));
    }
    check(
        r#"connect v5
         < connack
         > auth
         : AUTH without an authentication method
         ! closed Protocol(ProtocolError) will=false expiry=0
         < disconnect 0x82 "AUTH without an authentication method""#,
    );
}

// Conformance v5: 3.1.2-10, 3.14.4-3
#[test]
fn mqtt_3_1_2_10_disconnect_withdraws_the_will_only_with_reason_0() {
    check(
        "connect v5 will expiry=9
         < connack
         > disconnect
         ! closed Client(Success) will=false expiry=9
         > pingreq",
    );
    check(
        "connect v5 will
         < connack
         > disconnect 0x04
         ! closed Client(DisconnectWithWill) will=true expiry=0",
    );
    check(
        "connect v3 will clean
         < connack
         = lost
         ! closed Lost will=true expiry=0",
    );
    check(
        "connect v5 will
         < connack
         = close 0x8e text=elsewhere
         ! closed Server(SessionTakenOver) will=true expiry=0
         < disconnect 0x8e \"elsewhere\"
         = close 0x8b",
    );
    check(
        "connect v3 clean
         < connack
         = close 0x8b
         ! closed Server(ServerShuttingDown) will=false expiry=0",
    );
    check(
        "connect v5 will
         < connack
         = malformed 0x81
         ! closed Protocol(MalformedPacket) will=true expiry=0
         < disconnect 0x81 \"bad bytes\"",
    );
}

#[test]
fn mqtt_3_14_2_2_2_session_expiry_changes_in_disconnect() {
    check(
        "connect v5 expiry=10 our-expiry-max=50
         < connack
         > disconnect expiry=70
         ! closed Client(Success) will=false expiry=50",
    );
    check(
        "connect v5 expiry=10
         < connack
         > disconnect expiry=0
         ! closed Client(Success) will=false expiry=0",
    );
    check(
        r#"connect v5
         < connack
         > disconnect expiry=1
         : DISCONNECT extends a session that was to end with its connection
         ! closed Protocol(ProtocolError) will=false expiry=0
         < disconnect 0x82 "DISCONNECT extends a session that was to end with its connection""#,
    );
}

// Conformance v5: 3.3.4-1
#[test]
fn qos_0_publishes_are_not_answered() {
    check(
        "connect v5
         < connack
         > publish q0 topic=a/b payload=hi retain expiry=5
         ! publish q0 topic=a/b payload=hi retain expiry=5",
    );
}

// Conformance v5: 4.6.0-2, 4.6.0-3
#[test]
fn mqtt_4_6_0_2_and_3_answers_come_in_the_order_of_the_publishes() {
    check(
        "connect v5
         < connack
         > publish q1 #1
         ! publish q1 #1 topic=t payload=x
         > publish q2 #2
         ! publish q2 #2 topic=t payload=x
         > publish q1 #3
         ! publish q1 #3 topic=t payload=x
         = published 2
         = published 1 0x10
         = published 0 0x97 text=full
         < puback 1 0x97 text=full
         < pubrec 2 0x10
         < puback 3
         = published 0",
    );
}

#[test]
fn a_3_1_1_publisher_that_is_refused_is_disconnected() {
    check(
        "connect v3 will clean
         < connack
         > publish q1 #1
         ! publish q1 #1 topic=t payload=x
         > publish q1 #2
         ! publish q1 #2 topic=t payload=x
         = published 0 0x10
         < puback 1
         = published 1 0x97
         ! closed Server(QuotaExceeded) will=true expiry=0",
    );
}

// Conformance v5: 4.3.3-9, 4.3.3-10, 4.3.3-11, 4.3.3-12, 3.7.2-1
#[test]
fn mqtt_4_3_3_qos_2_is_released_once() {
    check(
        "connect v5
         < connack
         > publish q2 #7
         ! publish q2 #7 topic=t payload=x
         > publish q2 #7 dup
         ! publish q2 #7 topic=t payload=x dup repeated
         = published 0
         < pubrec 7
         > publish q2 #7 dup
         ! publish q2 #7 topic=t payload=x dup repeated
         < pubrec 7
         > pubrel 7
         ! release 7
         > pubrel 7
         = released 7
         < pubcomp 7
         = released 7
         > pubrel 7
         < pubcomp 7 0x92
         > publish q2 #7
         ! publish q2 #7 topic=t payload=x
         = published 1 0x97
         < pubrec 7 0x97
         > publish q2 #7
         ! publish q2 #7 topic=t payload=x",
    );
}

#[test]
fn qos_2_steps_out_of_order_end_the_connection() {
    check(
        "connect v3 clean
         < connack
         > publish q2 #7
         ! publish q2 #7 topic=t payload=x
         > pubrel 7
         : PUBREL before PUBREC
         ! closed Protocol(ProtocolError) will=false expiry=0
         = published 0",
    );
    check(
        "connect v3 clean
         < connack
         > publish q2 #7
         ! publish q2 #7 topic=t payload=x
         = published 0
         < pubrec 7
         > pubrel 7
         ! release 7
         > publish q2 #7
         : PUBLISH with a packet id that waits for PUBCOMP
         ! closed Protocol(ProtocolError) will=false expiry=0",
    );
}

// Conformance v5: 3.3.4-7
#[test]
fn mqtt_3_3_4_9_receive_maximum_of_the_server() {
    check(
        r#"connect v5 our-receive-max=2
         < connack receive-max=2
         > publish q2 #1
         ! publish q2 #1 topic=t payload=x
         > publish q1 #2
         ! publish q1 #2 topic=t payload=x
         = permits
         : 0
         = published 0
         < pubrec 1
         = published 1
         < puback 2
         = permits
         : 1
         > publish q2 #1 dup
         ! publish q2 #1 topic=t payload=x dup repeated
         < pubrec 1
         = permits
         : 1
         > publish q1 #3
         ! publish q1 #3 topic=t payload=x
         > publish q0
         ! publish q0 topic=t payload=x
         > publish q1 #4
         : more unacknowledged publishes than Receive Maximum
         ! closed Protocol(ReceiveMaximumExceeded) will=false expiry=0
         < disconnect 0x93 "more unacknowledged publishes than Receive Maximum""#,
    );
}

#[test]
fn a_3_1_1_client_is_not_read_beyond_the_receive_maximum() {
    check(
        "connect v3 clean our-receive-max=1
         < connack
         = wants-read
         : true
         > publish q2 #1
         ! publish q2 #1 topic=t payload=x
         = wants-read
         : false
         = published 0
         < pubrec 1
         = wants-read
         : true
         > publish q2 #2
         ! publish q2 #2 topic=t payload=x",
    );
}

// Conformance v5: 3.3.2-9, 3.3.2-12
#[test]
fn mqtt_3_3_2_3_4_topic_aliases_of_the_client() {
    check(
        r#"connect v5 our-alias-max=2
         < connack alias-max=2
         > publish topic=a alias=2
         ! publish q0 topic=a payload=x
         > publish no-topic alias=2
         ! publish q0 topic=a payload=x
         > publish topic=b alias=2
         ! publish q0 topic=b payload=x
         > publish no-topic alias=2
         ! publish q0 topic=b payload=x
         > publish no-topic alias=1
         : topic alias that was never set
         ! closed Protocol(ProtocolError) will=false expiry=0
         < disconnect 0x82 "topic alias that was never set""#,
    );
    check(
        r#"connect v5 our-alias-max=2
         < connack alias-max=2
         > publish topic=a alias=3
         : topic alias above the maximum that was granted
         ! closed Protocol(TopicAliasInvalid) will=false expiry=0
         < disconnect 0x94 "topic alias above the maximum that was granted""#,
    );
}

// Conformance v5: 3.1.2-26, 3.3.2-11
#[test]
fn mqtt_3_3_2_12_topic_aliases_to_the_client() {
    check(
        "connect v5 alias-max=1
         < connack
         = deliver q0 topic=aaaa
         : sent
         < publish q0 topic=aaaa payload=x alias=1
         = deliver q1 topic=aaaa
         : id 1
         < publish q1 #1 topic= payload=x alias=1
         = deliver q0 topic=bbbb
         : sent
         < publish q0 topic=bbbb payload=x",
    );
    check(
        "connect v3 clean alias-max=1
         < connack
         = deliver q0 topic=aaaa
         : sent
         < publish q0 topic=aaaa payload=x",
    );
}

// Conformance v5: 3.3.4-6
#[test]
fn mqtt_3_3_4_6_no_subscription_identifier_from_a_client() {
    check(
        r#"connect v5
         < connack
         > publish sub-id=1
         : PUBLISH of a client with a subscription identifier
         ! closed Protocol(ProtocolError) will=false expiry=0
         < disconnect 0x82 "PUBLISH of a client with a subscription identifier""#,
    );
}

// Conformance v5: 4.3.2-2, 4.3.2-3
#[test]
fn qos_1_delivery() {
    check(
        "connect v5
         < connack
         = deliver q1 topic=a payload=p retain sub-id=5 user=u tag=A
         : id 1
         < publish q1 #1 topic=a payload=p retain sub-id=5 user=u
         = deliver q1 tag=B
         : id 2
         < publish q1 #2 topic=t payload=x
         > puback 2
         ! acked 2 B
         > puback 1 0x97
         ! acked 1 A 0x97
         > puback 1
         = unknown-acks
         : 1
         = deliver q1 tag=C
         : id 3
         < publish q1 #3 topic=t payload=x",
    );
}

// Conformance v5: 4.3.3-2, 4.3.3-4, 4.3.3-5, 2.2.1-5, 3.6.2-1
#[test]
fn mqtt_4_3_3_qos_2_delivery() {
    check(
        "connect v5
         < connack
         = deliver q2 tag=A
         : id 1
         < publish q2 #1 topic=t payload=x
         > pubrec 1
         < pubrel 1
         > pubrec 1
         < pubrel 1
         > pubcomp 1
         ! acked 1 A
         > pubcomp 1
         > pubrec 1
         < pubrel 1 0x92
         > pubrec 1 0x92
         = unknown-acks
         : 3",
    );
}

// Conformance v5: 4.9.0-2, 4.4.0-2
#[test]
fn mqtt_4_9_a_pubrec_with_an_error_frees_the_slot() {
    check(
        "connect v5 receive-max=1
         < connack
         = deliver q2 tag=A
         : id 1
         < publish q2 #1 topic=t payload=x
         = deliver q1 tag=B
         : refused NoQuota B
         > pubrec 1 0x97
         ! acked 1 A 0x97
         = deliver q1 tag=B
         : id 2
         < publish q1 #2 topic=t payload=x",
    );
}

#[test]
fn a_stored_release_waits_for_the_store() {
    check(
        "connect v5
         < connack
         = reserve
         : id Some(1)
         = deliver-reserved 1 q2 store tag=A
         < publish q2 #1 topic=t payload=x
         > pubrec 1
         ! received 1 A
         > pubrec 1
         = stored 1
         < pubrel 1
         = stored 1
         > pubcomp 1
         ! acked 1 A",
    );
}

#[test]
fn a_reserved_id_takes_a_slot_until_used_or_given_up() {
    check(
        "connect v5 receive-max=1
         < connack
         = deliver-reserved 1 q2
         : refused NotReserved
         = reserve
         : id Some(1)
         = reserve
         : id None
         = quota
         : 0
         > puback 1
         = unknown-acks
         : 1
         = forget 1
         : true
         = quota
         : 1
         = reserve
         : id Some(2)
         = deliver-reserved 2 q1 expires-ms=0
         : refused Expired
         = quota
         : 1",
    );
}

#[test]
fn answers_of_the_wrong_kind_end_the_connection() {
    for (qos, answer, what) in [
        ("q1", "pubrec", "PUBREC for a delivery of QoS 1"),
        ("q2", "puback", "PUBACK for a delivery of QoS 2"),
        ("q2", "pubcomp", "PUBCOMP for a delivery that was not released"),
    ] {
        check(&format!(
            "connect v3 clean
             < connack
             = deliver {qos}
             : id 1
             < publish {qos} #1 topic=t payload=x
             > {answer} 1
             : {what}
             ! closed Protocol(ProtocolError) will=false expiry=0"
        ));
    }
}

// Conformance v5: 3.3.4-9, 4.9.0-1, 4.9.0-2
#[test]
fn mqtt_3_3_4_7_receive_maximum_of_the_client() {
    check(
        "connect v5 receive-max=2 our-inflight-max=9
         < connack
         = quota
         : 2
         = deliver q1
         : id 1
         < publish q1 #1 topic=t payload=x
         = deliver q2
         : id 2
         < publish q2 #2 topic=t payload=x
         = deliver q1 tag=C
         : refused NoQuota C
         = deliver q0
         : sent
         < publish q0 topic=t payload=x
         > pubrec 2
         < pubrel 2
         = quota
         : 0
         > pubcomp 2
         ! acked 2 A
         = quota
         : 1",
    );
    check(
        "connect v3 clean receive-max=2 our-inflight-max=9
         < connack
         = quota
         : 9",
    );
    check(
        "connect v5 our-inflight-max=9
         < connack
         = quota
         : 9",
    );
}

#[test]
fn a_withdrawn_delivery_keeps_its_id_until_the_late_puback() {
    check(
        "connect v5 receive-max=1
         < connack
         = deliver q1 once tag=A
         : id 1
         < publish q1 #1 topic=t payload=x
         = forget 1
         : false
         = quota
         : 0
         > puback 1
         ! acked 1 A
         = forget 1
         : false
         = quota
         : 1",
    );
}

#[test]
fn a_delivery_withdrawn_before_it_is_written_is_never_written() {
    check(
        "connect v5 receive-max=1
         < connack
         = hold
         = deliver q1 once tag=A
         : id 1
         > puback 1
         = unknown-acks
         : 1
         = forget 1
         : true
         = deliver q1 once tag=B
         : id 2
         = flush
         < publish q1 #2 topic=t payload=x",
    );
}

// Conformance v5: 3.1.2-24, 3.1.2-25, 3.4.2-2, 3.5.2-2, 3.9.2-1, 3.9.2-2, 3.11.2-1, 3.11.2-2, 3.14.2-3
#[test]
fn mqtt_3_1_2_24_and_25_maximum_packet_size_of_the_client() {
    // 2 fixed header, 2 + 1 topic, 1 property length, 4 payload: 10; a packet id takes 2 more. CONNACK takes 10.
    check(
        "connect v5 packet-max=10
         < connack
         = deliver q1 payload=123
         : refused TooLarge A
         = deliver q0 payload=1234
         : sent
         < publish q0 topic=t payload=1234
         = deliver q1 payload=12
         : id 1
         < publish q1 #1 topic=t payload=12
         = deliver q0 payload=12345
         : refused TooLarge A
         = quota
         : 65534",
    );
    check(
        "connect v5 packet-max=14
         < connack
         = subscribed 1 0x00 text=a user=b
         < suback 1 0x00 text=a
         = subscribed 1 0x00 text=abcdefgh
         < suback 1 0x00
         = unsubscribed 1 0x00 text=abcde
         < unsuback 1 0x00 text=abcde
         = unsubscribed 1 0x00 text=a user=b
         < unsuback 1 0x00 text=a
         > publish q1 #1
         ! publish q1 #1 topic=t payload=x
         = published 0 0x97 text=abcdefgh
         < puback 1 0x97
         > publish q1 #2
         ! publish q1 #2 topic=t payload=x
         = published 1 0x97 text=abc
         < puback 2 0x97 text=abc
         > publish q2 #3
         ! publish q2 #3 topic=t payload=x
         = published 2 0x97 text=abcdefgh
         < pubrec 3 0x97
         > publish q2 #3
         ! publish q2 #3 topic=t payload=x
         = published 3 0x97 text=abc
         < pubrec 3 0x97 text=abc
         = close 0x8b text=abcdefghijklm
         ! closed Server(ServerShuttingDown) will=false expiry=0
         < disconnect 0x8b",
    );
    check(
        "connect v5 packet-max=9
         ! closed Protocol(PacketTooLarge) will=false expiry=0",
    );
}

// Conformance v5: 3.1.2-24
#[test]
fn an_alias_is_not_set_where_it_would_make_the_packet_too_large() {
    check(
        "connect v5 packet-max=12 alias-max=1
         < connack
         = deliver q0 topic=aaaa
         : sent
         < publish q0 topic=aaaa payload=x
         = deliver q0 topic=aaa
         : sent
         < publish q0 topic=aaa payload=x",
    );
}

// Conformance v5: 3.1.2-29
#[test]
fn mqtt_3_1_2_29_no_problem_information() {
    check(
        r#"connect v5 problem-info=0
         < connack
         > publish q1 #1
         ! publish q1 #1 topic=t payload=x
         = published 0 0x97 text=full
         < puback 1 0x97
         > subscribe 2
         ! subscribe 2
         = subscribed 2 0x01 text=a user=b
         < suback 2 0x01
         > unsubscribe 3
         ! unsubscribe 3
         = unsubscribed 3 0x00 text=a
         < unsuback 3 0x00
         = deliver q0 user=u
         : sent
         < publish q0 topic=t payload=x user=u
         = close 0x8b text=bye
         ! closed Server(ServerShuttingDown) will=false expiry=0
         < disconnect 0x8b "bye""#,
    );
}

// Conformance v5: 3.3.2-5, 3.3.2-6
#[test]
fn mqtt_3_3_2_5_and_6_message_expiry() {
    check(
        "connect v5
         < connack
         = deliver q0 expires-ms=1001
         : sent
         < publish q0 topic=t payload=x expiry=2
         = deliver q0 expires-ms=1000
         : sent
         < publish q0 topic=t payload=x expiry=1
         = deliver q1 expires-ms=0
         : refused Expired A
         = quota
         : 65535",
    );
}

// Conformance v5: 3.14.4-1
#[test]
fn after_the_end_nothing_is_taken_or_sent() {
    check(
        "connect v5
         < connack
         > publish q1 #1
         ! publish q1 #1 topic=t payload=x
         > publish q2 #2
         ! publish q2 #2 topic=t payload=x
         > disconnect
         ! closed Client(Success) will=false expiry=0
         = published 0
         = released 2
         = subscribed 1 0x00
         = deliver q0
         : refused Closed A
         = deliver q1
         : refused Closed A
         = reserve
         : id None
         = quota
         : 0
         > publish q1 #3
         = lost
         = close 0x8b",
    );
}

#[test]
fn too_many_open_requests_stop_the_reading() {
    let mut script = String::from("connect v5\n< connack\n");
    for id in 1..=16 {
        script += &format!("> subscribe {id}\n! subscribe {id}\n");
    }
    script += "= wants-read\n: false\n= subscribed 1 0x00\n< suback 1 0x00\n= wants-read\n: true";
    check(&script);
}
