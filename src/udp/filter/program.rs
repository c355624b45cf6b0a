//! The filter as a program of extended BPF (RFC 9669): mac1 of an initiation or a response, computed and compared.
//!
//! ```text
//! payload of 148 bytes, type 1 ─┐                  no key told ─▶ let through
//! payload of 92 bytes, type 2  ─┴▶ BLAKE2s from the key's state ─▶ mac1 as it should be ─▶ let through
//! anything else ─▶ let through                                     otherwise ─▶ count, drop
//! ```
//!
//! A program may loop only where the kernel can see the end of it, and has ten registers and half a kilobyte of stack:
//! the ten rounds of BLAKE2s are written out, once, as a function of one block, with the sixteen working words on the
//! stack. It has no view of coalesced datagrams but as one of their length, so those are let through.

use super::blake2s::{BLOCK_LEN, IV, MAC_LEN, ROTATIONS, SIGMA, State, mixed};
use crate::sys::bpf::Instruction;

/// Bytes of an initiation, of a response, and of the two macs at the end of both. [WP 5.4.2] [WP 5.4.3]
pub(super) const INITIATION_LEN: usize = 148;
pub(super) const RESPONSE_LEN: usize = 92;
pub(super) const MACS_LEN: usize = 2 * MAC_LEN;

/// Byte offsets in the memory that is shared with the program. First whether there is a key: 0 for none.
pub(super) const ACTIVE_AT: usize = 0;
/// The state after the block of the key, 32 bytes.
pub(super) const STATE_AT: usize = 32;
/// How many messages were dropped; on a cache line of its own.
pub(super) const DROPPED_AT: usize = 128;
/// Bytes of all of it.
pub(super) const SHARED_LEN: usize = DROPPED_AT + 8;

/// Bytes of BLAKE2s's state.
pub(super) const STATE_LEN: usize = size_of::<State>();
/// Bytes of the header that a socket's program sees before the payload.
pub(super) const UDP_HEADER_LEN: usize = 8;

/// Bytes that mac1 covers: of an initiation, which is two blocks, and of a response, which is one.
const INITIATION_COVERED: usize = INITIATION_LEN - MACS_LEN;
const RESPONSE_COVERED: usize = RESPONSE_LEN - MACS_LEN;
const _: () = assert!(INITIATION_COVERED > BLOCK_LEN && INITIATION_COVERED <= 2 * BLOCK_LEN);
const _: () = assert!(RESPONSE_COVERED <= BLOCK_LEN && MAC_LEN == 16);

/// The message types, as the first four bytes are read. [WP 5.4]
const INITIATION: i32 = 1;
const RESPONSE: i32 = 2;

/// A datagram is let through whole.
const LET_THROUGH: i32 = -1;

/// `bpf_skb_load_bytes` (linux/bpf.h).
const LOAD_BYTES: i32 = 26;

/// A register.
#[derive(Clone, Copy)]
struct Register(u8);

// What a function returns, its arguments, what it must leave as it was, and the end of its stack.
const R0: Register = Register(0);
const R1: Register = Register(1);
const R2: Register = Register(2);
const R3: Register = Register(3);
const R4: Register = Register(4);
const R5: Register = Register(5);
const R6: Register = Register(6);
const R7: Register = Register(7);
const R8: Register = Register(8);
const R9: Register = Register(9);
const STACK: Register = Register(10);

/// How wide a load or store is.
#[derive(Clone, Copy)]
enum Width {
    Word = 0x00,
    Double = 0x18,
}

use Width::{Double, Word};

// Classes and operations (RFC 9669, section 4).
const ALU32: u8 = 0x04;
const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const BY_REGISTER: u8 = 0x08;
const ADD: u8 = 0x00;
const OR: u8 = 0x40;
const SHIFT_LEFT: u8 = 0x60;
const SHIFT_RIGHT: u8 = 0x70;
const XOR: u8 = 0xa0;
const MOVE: u8 = 0xb0;
const ALWAYS: u8 = 0x00;
const EQUAL: u8 = 0x10;
const UNEQUAL: u8 = 0x50;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;

/// A place in the program that is jumped to from before it.
#[derive(Default)]
struct Label {
    jumps: Vec<usize>,
}

/// Writes instructions down.
#[derive(Default)]
struct Assembler {
    instructions: Vec<Instruction>,
}

impl Assembler {
    fn emit(&mut self, code: u8, dst: Register, src: Register, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers: src.0 << 4 | dst.0, offset, immediate });
    }

    /// `dst = dst op src`, the lower 32 bits of both; the upper ones become zero.
    fn word(&mut self, operation: u8, dst: Register, src: Register) {
        self.emit(ALU32 | operation | BY_REGISTER, dst, src, 0, 0);
    }

    /// The same with a constant.
    fn word_by(&mut self, operation: u8, dst: Register, constant: i32) {
        self.emit(ALU32 | operation, dst, R0, 0, constant);
    }

    /// `dst = dst op src`, all 64 bits.
    fn double(&mut self, operation: u8, dst: Register, src: Register) {
        self.emit(ALU64 | operation | BY_REGISTER, dst, src, 0, 0);
    }

    /// The same with a constant, whose sign is kept.
    fn double_by(&mut self, operation: u8, dst: Register, constant: i32) {
        self.emit(ALU64 | operation, dst, R0, 0, constant);
    }

    /// `dst = base + offset`.
    fn address(&mut self, dst: Register, base: Register, offset: i16) {
        self.double(MOVE, dst, base);
        self.double_by(ADD, dst, offset.into());
    }

    /// `dst = memory[base + offset]`.
    fn load(&mut self, width: Width, dst: Register, base: Register, offset: i16) {
        self.emit(0x61 | width as u8, dst, base, offset, 0);
    }

    /// `memory[base + offset] = src`.
    fn store(&mut self, width: Width, base: Register, offset: i16, src: Register) {
        self.emit(0x63 | width as u8, base, src, offset, 0);
    }

    /// `memory[base + offset] = constant`.
    fn store_constant(&mut self, width: Width, base: Register, offset: i16, constant: i32) {
        self.emit(0x62 | width as u8, base, R0, offset, constant);
    }

    /// `memory[base + offset] += src`, 64 bits at once.
    fn add_atomically(&mut self, base: Register, offset: i16, src: Register) {
        self.emit(0xdb, base, src, offset, 0);
    }

    /// `dst` = the address of the shared memory of this number.
    fn shared_memory(&mut self, dst: Register, number: i32) {
        // The source 2 says that what is named is a map, and what is meant its first value.
        self.emit(0x18, dst, Register(2), 0, number);
        self.emit(0, R0, R0, 0, 0);
    }

    /// Calls one of the kernel's functions.
    fn call_kernel(&mut self, function: i32) {
        self.emit(JUMP | CALL, R0, R0, 0, function);
    }

    fn exit(&mut self) {
        self.emit(JUMP | EXIT, R0, R0, 0, 0);
    }

    /// Jumps where `register condition constant`.
    fn jump_if(&mut self, condition: u8, register: Register, constant: i32, to: &mut Label) {
        to.jumps.push(self.instructions.len());
        self.emit(JUMP | condition, register, R0, 0, constant);
    }

    /// Jumps where `register condition other`.
    fn jump_if_register(&mut self, condition: u8, register: Register, other: Register, to: &mut Label) {
        to.jumps.push(self.instructions.len());
        self.emit(JUMP | condition | BY_REGISTER, register, other, 0, 0);
    }

    fn jump(&mut self, to: &mut Label) {
        self.jump_if(ALWAYS, R0, 0, to);
    }

    /// Calls a function of this program.
    fn call(&mut self, function: &mut Label) {
        function.jumps.push(self.instructions.len());
        // The source 1 says that the constant is how far it is.
        self.emit(JUMP | CALL, R0, R1, 0, 0);
    }

    /// Here is where the label's jumps lead.
    fn place(&mut self, label: Label) {
        let here = self.instructions.len();
        for from in label.jumps {
            let distance = here - from - 1;
            let jump = &mut self.instructions[from];
            if jump.code == JUMP | CALL {
                jump.immediate = distance as i32;
            } else {
                jump.offset = distance as i16;
            }
        }
    }
}

// The main function's stack: the message's covered bytes, padded to two blocks; the state; the mac1 that the message has.
const COVERED_AT: i16 = -(2 * BLOCK_LEN as i16);
const SECOND_BLOCK_AT: i16 = COVERED_AT + BLOCK_LEN as i16;
const HASHED_AT: i16 = COVERED_AT - STATE_LEN as i16;
const MAC1_AT: i16 = HASHED_AT - MAC_LEN as i16;

/// The program, for shared memory of this number.
pub(super) fn program(shared: i32) -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    let mut compress = Label::default();
    decide(&mut assembler, shared, &mut compress);
    assembler.place(compress);
    compress_block(&mut assembler);
    assembler.instructions
}

/// The main function: `R1` is what the kernel knows of the datagram, its length first.
fn decide(asm: &mut Assembler, shared: i32, compress: &mut Label) {
    let [mut through, mut candidate, mut one_block, mut last_block] = [const { Label { jumps: Vec::new() } }; 4];
    let (datagram, covered, kind, memory) = (R6, R7, R8, R9);
    asm.double(MOVE, datagram, R1);
    asm.load(Word, R1, datagram, 0);
    asm.double_by(MOVE, covered, INITIATION_COVERED as i32);
    asm.double_by(MOVE, kind, INITIATION);
    asm.jump_if(EQUAL, R1, (UDP_HEADER_LEN + INITIATION_LEN) as i32, &mut candidate);
    asm.double_by(MOVE, covered, RESPONSE_COVERED as i32);
    asm.double_by(MOVE, kind, RESPONSE);
    asm.jump_if(UNEQUAL, R1, (UDP_HEADER_LEN + RESPONSE_LEN) as i32, &mut through);
    asm.place(candidate);

    // What is behind the covered bytes is zero, to the end of a block; whole double words suffice.
    for offset in (RESPONSE_COVERED as i16 / 8 * 8..2 * BLOCK_LEN as i16).step_by(8) {
        asm.store_constant(Double, STACK, COVERED_AT + offset, 0);
    }
    asm.double(MOVE, R1, datagram);
    asm.double_by(MOVE, R2, UDP_HEADER_LEN as i32);
    asm.address(R3, STACK, COVERED_AT);
    asm.double(MOVE, R4, covered);
    asm.call_kernel(LOAD_BYTES);
    asm.jump_if(UNEQUAL, R0, 0, &mut through);
    asm.load(Word, R1, STACK, COVERED_AT);
    asm.jump_if_register(UNEQUAL, R1, kind, &mut through);
    asm.double(MOVE, R1, datagram);
    asm.address(R2, covered, UDP_HEADER_LEN as i16);
    asm.address(R3, STACK, MAC1_AT);
    asm.double_by(MOVE, R4, MAC_LEN as i32);
    asm.call_kernel(LOAD_BYTES);
    asm.jump_if(UNEQUAL, R0, 0, &mut through);

    asm.shared_memory(memory, shared);
    asm.load(Double, R1, memory, ACTIVE_AT as i16);
    asm.jump_if(EQUAL, R1, 0, &mut through);
    for offset in (0..STATE_LEN as i16).step_by(8) {
        asm.load(Double, R1, memory, STATE_AT as i16 + offset);
        asm.store(Double, STACK, HASHED_AT + offset, R1);
    }

    asm.address(R1, STACK, COVERED_AT);
    asm.address(R2, STACK, HASHED_AT);
    asm.jump_if(EQUAL, covered, RESPONSE_COVERED as i32, &mut one_block);
    // Bytes hashed with the block: those of the key, too.
    asm.double_by(MOVE, R3, 2 * BLOCK_LEN as i32);
    asm.double_by(MOVE, R4, 0);
    asm.call(compress);
    asm.address(R1, STACK, SECOND_BLOCK_AT);
    asm.address(R2, STACK, HASHED_AT);
    asm.double_by(MOVE, R3, (BLOCK_LEN + INITIATION_COVERED) as i32);
    asm.jump(&mut last_block);
    asm.place(one_block);
    asm.double_by(MOVE, R3, (BLOCK_LEN + RESPONSE_COVERED) as i32);
    asm.place(last_block);
    asm.double_by(MOVE, R4, -1);
    asm.call(compress);

    // All bytes are compared, whatever the first ones say.
    asm.load(Double, R1, STACK, HASHED_AT);
    asm.load(Double, R2, STACK, MAC1_AT);
    asm.double(XOR, R1, R2);
    asm.load(Double, R3, STACK, HASHED_AT + 8);
    asm.load(Double, R2, STACK, MAC1_AT + 8);
    asm.double(XOR, R3, R2);
    asm.double(OR, R1, R3);
    asm.jump_if(EQUAL, R1, 0, &mut through);
    asm.double_by(MOVE, R1, 1);
    asm.add_atomically(memory, DROPPED_AT as i16, R1);
    asm.word_by(MOVE, R0, 0);
    asm.exit();
    asm.place(through);
    asm.word_by(MOVE, R0, LET_THROUGH);
    asm.exit();
}

/// The function of one block: `R1` is the address of the block, `R2` of the state, `R3` how many bytes were hashed with
/// it, `R4` all ones for the last block and zero for another. RFC 7693, section 3.2.
fn compress_block(asm: &mut Assembler) {
    let word_at = |index: usize| 4 * index as i16 - BLOCK_LEN as i16;
    for offset in (0..STATE_LEN as i16).step_by(8) {
        asm.load(Double, R5, R2, offset);
        asm.store(Double, STACK, word_at(0) + offset, R5);
    }
    for (index, iv) in IV.into_iter().enumerate() {
        let (at, iv) = (word_at(8 + index), iv.cast_signed());
        match index {
            4 | 6 => {
                let parameter = if index == 4 { R3 } else { R4 };
                asm.word_by(XOR, parameter, iv);
                asm.store(Word, STACK, at, parameter);
            }
            _ => asm.store_constant(Word, STACK, at, iv),
        }
    }
    for order in SIGMA {
        for (index, inputs) in order.as_chunks::<2>().0.iter().enumerate() {
            mix(asm, mixed(index).map(word_at), inputs.map(|word| 4 * i16::from(word)));
        }
    }
    for index in 0..8 {
        asm.load(Word, R0, R2, 4 * index as i16);
        for word in [index, index + 8] {
            asm.load(Word, R3, STACK, word_at(word));
            asm.word(XOR, R0, R3);
        }
        asm.store(Word, R2, 4 * index as i16, R0);
    }
    asm.word_by(MOVE, R0, 0);
    asm.exit();
}

/// The mixing of four words on the stack with two of the block. RFC 7693, section 3.1.
fn mix(asm: &mut Assembler, words: [i16; 4], inputs: [i16; 2]) {
    let registers @ [a, b, c, d] = [R3, R4, R5, R6];
    for (register, at) in registers.into_iter().zip(words) {
        asm.load(Word, register, STACK, at);
    }
    for (input, [first, second]) in inputs.into_iter().zip(ROTATIONS) {
        asm.word(ADD, a, b);
        asm.load(Word, R0, R1, input);
        asm.word(ADD, a, R0);
        asm.word(XOR, d, a);
        rotate_right(asm, d, first);
        asm.word(ADD, c, d);
        asm.word(XOR, b, c);
        rotate_right(asm, b, second);
    }
    for (register, at) in registers.into_iter().zip(words) {
        asm.store(Word, STACK, at, register);
    }
}

fn rotate_right(asm: &mut Assembler, register: Register, bits: u32) {
    asm.word(MOVE, R0, register);
    asm.word_by(SHIFT_RIGHT, R0, bits as i32);
    asm.word_by(SHIFT_LEFT, register, 32 - bits as i32);
    asm.word(OR, register, R0);
}
