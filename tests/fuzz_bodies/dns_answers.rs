//! Fuzz body: what a DNS server answers, through the stack's resolver. No answer panics; only addresses that it has are
//! believed, and no more than a few; and where it is not believed, the next answer is waited for.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use adit::netstack::{Config, Netstack};
use adit::packet::{Buffers, PacketRef};
use adit::tun::Tun as _;

use crate::input::Input;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 53);
/// Answers before the last one, and bytes of the longest.
const ANSWERS_MAX: usize = 4;
const ANSWER_MAX: usize = 1400;
/// Addresses that are taken from one answer.
const ADDRESSES_MAX: usize = 64;
/// The question for `host.example`, behind the identifier: the header, the name, type and class.
const QUESTION_LEN: usize = 12 + 14 + 4;

fn ones_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// An IPv4 datagram without a checksum of its own, back to where `query` came from.
fn answer_to(query: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = 28 + payload.len();
    let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(SERVER.octets());
    packet.extend(OWN.octets());
    let sum = ones_sum(&packet);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([&query[22..24], &query[20..22]].concat());
    packet.extend(((len - 20) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Answers: a byte of what is right in it, and its bytes behind identifier and question.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut config = Config::new(vec![(OWN.into(), 24)]);
    config.dns = vec![SocketAddr::new(SERVER.into(), 53)];
    let (mut tun, net) = Netstack::pair(config).expect("a sensible configuration");
    let mut queue = tun.queues(1).expect("queues").remove(0);
    let resolving = std::thread::spawn(move || net.resolve("host.example"));

    let (mut buffers, mut buffer) = (Buffers::new(1), vec![0; 65_535]);
    let mut answers: Vec<Vec<u8>> = Vec::new();
    while !resolving.is_finished() {
        let Some(packet) = queue.receiver.receive(&mut buffer).expect("a stack does not fail") else {
            std::thread::yield_now();
            continue;
        };
        let mut query = vec![0; packet.segment_len(0)];
        packet.write_segment(0, &mut query);
        let mut replies = Vec::new();
        if query[9] == 6 {
            // By TCP nobody is there, which a reset says.
            replies.push(reset(&query));
        } else {
            let asked = &query[28..];
            for _ in 0..ANSWERS_MAX {
                if input.is_empty() {
                    break;
                }
                let kind = input.byte();
                let mut answer = asked[..QUESTION_LEN.min(asked.len())].to_vec();
                let [flags @ .., code] = input.array::<2>();
                (answer[2], answer[3]) = (flags[0] | if kind & 1 != 0 { 0x80 } else { 0 }, code);
                answer[4..12].copy_from_slice(&[0, 1, 0, input.byte() & 0x7f, 0, 0, 0, 0]);
                answer.extend(input.list(ANSWER_MAX - QUESTION_LEN));
                if kind & 2 != 0 {
                    input.mutate(&mut answer);
                }
                answers.push(answer.clone());
                replies.push(answer_to(&query, &answer));
            }
            // There is no such host, says the last one: the resolver has an end in any case.
            let mut answer = asked[..QUESTION_LEN].to_vec();
            (answer[2], answer[3]) = (0x81, 0x83);
            answer[10..12].fill(0);
            replies.push(answer_to(&query, &answer));
        }
        for reply in replies {
            buffers.whole(0)[..reply.len()].copy_from_slice(&reply);
            queue.sender.send(&buffers, &[PacketRef { buffer: 0, start: 0, len: reply.len() as u32 }]);
        }
    }
    match resolving.join().expect("no panic") {
        Ok(addresses) => {
            assert!(!addresses.is_empty() && addresses.len() <= ADDRESSES_MAX);
            for address in addresses {
                let IpAddr::V4(address) = address else { panic!("{address} was not asked for") };
                let octets = address.octets();
                let is_told = answers.iter().any(|answer| answer.windows(4).any(|window| window == octets));
                assert!(is_told, "{address} is in no answer");
            }
        }
        Err(error) => assert_ne!(error.kind(), ErrorKind::TimedOut, "{error}"),
    }
}

/// The refusal of a TCP segment.
fn reset(segment: &[u8]) -> Vec<u8> {
    let sequence = u32::from_be_bytes([segment[24], segment[25], segment[26], segment[27]]);
    let mut tcp = [&segment[22..24], &segment[20..22], &[0; 4]].concat();
    tcp.extend(sequence.wrapping_add(1).to_be_bytes());
    tcp.extend([0x50, 0x14, 0, 0, 0, 0, 0, 0]);
    let pseudo = [&SERVER.octets()[..], &OWN.octets(), &[0, 6, 0, 20]].concat();
    let sum = ones_sum(&[pseudo, tcp.clone()].concat());
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut packet = answer_to(segment, &[0; 12]);
    packet[9] = 6;
    packet[10..12].fill(0);
    let sum = ones_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
    packet.truncate(20);
    packet.extend(tcp);
    packet
}
