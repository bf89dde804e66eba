//! What is left of one connection and comes back in the next [MQTT-4.4.0-1].

use crate::script::check;

// Conformance v5: 3.3.1-1, 4.4.0-1, 4.6.0-1, 4.3.3-6
#[test]
fn mqtt_4_4_0_1_resends_in_the_original_order_with_dup_and_the_original_ids() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q2 tag=A
         : id 1
         < publish q2 #1 topic=t payload=x
         = deliver q1 tag=B
         : id 2
         < publish q1 #2 topic=t payload=x
         = deliver q2 tag=C
         : id 3
         < publish q2 #3 topic=t payload=x
         = deliver q1 tag=D
         : id 4
         < publish q1 #4 topic=t payload=x
         > puback 2
         ! acked 2 B
         > pubrec 1
         < pubrel 1
         = reconnect
         : outgoing [1 released A, 3 published C, 4 published D] returned [] incoming []
         < connack present
         < pubrel 1
         < publish q2 #3 topic=t payload=x dup
         < publish q1 #4 topic=t payload=x dup
         = deliver q1 tag=E
         : id 2
         < publish q1 #2 topic=t payload=x
         > pubcomp 1
         ! acked 1 A
         = reconnect
         : outgoing [3 published C, 4 published D, 2 published E] returned [] incoming []
         < connack present
         < publish q2 #3 topic=t payload=x dup
         < publish q1 #4 topic=t payload=x dup
         < publish q1 #2 topic=t payload=x dup
         > pubrec 3
         < pubrel 3
         > pubcomp 3
         ! acked 3 C",
    );
}

#[test]
fn resends_keep_to_the_receive_maximum_of_the_new_connection() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q1 tag=A
         : id 1
         < publish q1 #1 topic=t payload=x
         = deliver q1 tag=B
         : id 2
         < publish q1 #2 topic=t payload=x
         = deliver q2 tag=C
         : id 3
         < publish q2 #3 topic=t payload=x
         > pubrec 3
         < pubrel 3
         = reconnect receive-max=1
         : outgoing [1 published A, 2 published B, 3 released C] returned [] incoming []
         < connack present
         < publish q1 #1 topic=t payload=x dup
         = quota
         : 0
         = deliver q1 tag=D
         : refused NoQuota D
         > puback 2
         ! acked 2 B
         > puback 1
         ! acked 1 A
         < pubrel 3
         > pubcomp 3
         ! acked 3 C
         = quota
         : 1",
    );
}

// Conformance v5: 3.1.2-25
#[test]
fn mqtt_3_1_2_25_a_resend_that_has_become_too_large_counts_as_delivered() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q1 tag=A payload=1234567890
         : id 1
         < publish q1 #1 topic=t payload=1234567890
         = deliver q1 tag=B
         : id 2
         < publish q1 #2 topic=t payload=x
         = reconnect packet-max=12
         : outgoing [1 published A, 2 published B] returned [] incoming []
         ! acked 1 A 0x95
         < connack present
         < publish q1 #2 topic=t payload=x dup",
    );
}

// Conformance v5: 4.3.3-7
#[test]
fn a_delivery_that_has_begun_is_resent_even_after_its_expiry() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q2 tag=A expires-ms=5000
         : id 1
         < publish q2 #1 topic=t payload=x expiry=5
         + 1500ms
         = reconnect
         : outgoing [1 published A] returned [] incoming []
         < connack present
         < publish q2 #1 topic=t payload=x dup expiry=4
         + 9000ms
         = reconnect
         : outgoing [1 published A] returned [] incoming []
         < connack present
         < publish q2 #1 topic=t payload=x dup expiry=0",
    );
}

#[test]
fn deliveries_of_queues_are_handed_back_and_not_resumed() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q1 tag=A once
         : id 1
         < publish q1 #1 topic=t payload=x
         = deliver q1 tag=B
         : id 2
         < publish q1 #2 topic=t payload=x
         = hold
         = deliver q1 tag=C once
         : id 3
         = reserve
         : id Some(4)
         = reconnect
         : outgoing [2 published B] returned [A true, C false] incoming []",
    );
}

// Conformance v5: 4.3.3-10
#[test]
fn received_qos_2_ids_survive_and_their_repeats_are_answered_in_turn() {
    check(
        "connect v5 expiry=9 our-receive-max=3
         < connack receive-max=3
         > publish q2 #1
         ! publish q2 #1 topic=t payload=x
         > publish q2 #2
         ! publish q2 #2 topic=t payload=x
         > publish q2 #3
         ! publish q2 #3 topic=t payload=x
         = published 0
         < pubrec 1
         = published 2
         = reconnect
         : outgoing [] returned [] incoming [1, 3]
         < connack present receive-max=3
         > publish q2 #1 dup
         ! publish q2 #1 topic=t payload=x dup repeated
         < pubrec 1
         > publish q2 #2 dup
         ! publish q2 #2 topic=t payload=x dup
         > publish q2 #3 dup
         ! publish q2 #3 topic=t payload=x dup repeated
         = permits
         : 0
         = published 3
         < pubrec 2
         < pubrec 3
         > pubrel 3
         ! release 3
         = released 3
         < pubcomp 3
         = permits
         : 1",
    );
}

#[test]
fn a_release_between_a_repeat_and_its_answer_makes_the_answer_needless() {
    check(
        "connect v5 expiry=9
         < connack
         > publish q2 #1
         ! publish q2 #1 topic=t payload=x
         = published 0
         < pubrec 1
         = reconnect
         : outgoing [] returned [] incoming [1]
         < connack present
         > publish q1 #9
         ! publish q1 #9 topic=t payload=x
         > publish q2 #1 dup
         ! publish q2 #1 topic=t payload=x dup repeated
         > pubrel 1
         ! release 1
         = published 1
         < puback 9
         = released 1
         < pubcomp 1",
    );
}

#[test]
fn an_unstored_pubrec_is_resumed_as_released() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q2 tag=A store
         : id 1
         < publish q2 #1 topic=t payload=x
         > pubrec 1
         ! received 1 A
         = reconnect
         : outgoing [1 released A] returned [] incoming []
         < connack present
         < pubrel 1
         > pubcomp 1
         ! acked 1 A",
    );
}

#[test]
fn ids_that_an_earlier_connection_left_do_not_count_against_the_receive_maximum() {
    check(
        "connect v5 expiry=9 our-receive-max=1
         < connack receive-max=1
         > publish q2 #1
         ! publish q2 #1 topic=t payload=x
         = published 0
         < pubrec 1
         = reconnect
         : outgoing [] returned [] incoming [1]
         < connack present receive-max=1
         > publish q1 #2
         ! publish q1 #2 topic=t payload=x
         > pubrel 1
         ! release 1
         = released 1
         < pubcomp 1
         = permits
         : 0",
    );
}

#[test]
fn an_answer_that_overtakes_the_resend_spares_it() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q2 tag=A
         : id 1
         < publish q2 #1 topic=t payload=x
         = deliver q2 tag=B
         : id 2
         < publish q2 #2 topic=t payload=x
         = hold
         = reconnect receive-max=1
         : outgoing [1 published A, 2 published B] returned [] incoming []
         > pubrec 1
         > pubrec 2
         = flush
         < connack present
         < pubrel 1
         < pubrel 2
         > pubcomp 1
         ! acked 1 A
         > pubcomp 2
         ! acked 2 B
         = unknown-acks
         : 0",
    );
}

#[test]
fn an_id_used_again_before_its_needless_resend_was_written_carries_the_new_message() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q1 tag=A payload=old expires-ms=5000
         : id 1
         < publish q1 #1 topic=t payload=old expiry=5
         = hold
         = reconnect
         : outgoing [1 published A] returned [] incoming []
         > puback 1
         ! acked 1 A
         = deliver q1 tag=B payload=new
         : id 1
         = flush
         < connack present
         < publish q1 #1 topic=t payload=new",
    );
}

// Conformance v5: 3.3.2-7
#[test]
fn aliases_begin_anew_when_idle_buffers_are_freed_and_with_each_connection() {
    check(
        "connect v5 expiry=9 alias-max=1
         < connack
         = deliver q0 topic=aaaa
         : sent
         < publish q0 topic=aaaa payload=x alias=1
         = compact
         = deliver q0 topic=aaaa
         : sent
         < publish q0 topic=aaaa payload=x alias=1
         = reconnect
         : outgoing [] returned [] incoming []
         < connack present
         = deliver q0 topic=aaaa
         : sent
         < publish q0 topic=aaaa payload=x alias=1",
    );
}

#[test]
fn a_withdrawn_delivery_is_handed_back_and_not_resumed() {
    check(
        "connect v5 expiry=9
         < connack
         = deliver q1 tag=A
         : id 1
         < publish q1 #1 topic=t payload=x
         = forget 1
         : false
         = reconnect
         : outgoing [] returned [A true] incoming []
         < connack present",
    );
}
