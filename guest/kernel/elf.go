package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// Parts of ELF that matter here. debug/elf would do, but it takes section tables of any size; a
// kernel's program headers are all that a VMM looks at, and so all that is read.
const (
	elfClass64      = 2
	elfLittleEndian = 1
	elfTypeExec     = 2
	elfTypeDyn      = 3
	elfMachineAMD64 = 62
	elfHeaderBytes  = 64
	elfProgramBytes = 56
	elfProgramsMax  = 64 // a kernel has about 5
	elfNotesMax     = 64 << 10
	elfTypeLoad     = 1
	elfTypeNote     = 4
	noteHeaderBytes = 12
	// notePVHEntry is XEN_ELFNOTE_PHYS32_ENTRY.
	notePVHEntry = 18
)

// program is one program header, as far as it matters.
type program struct {
	kind uint32
	file span
}

func inspectELF(r io.ReaderAt, head []byte) (Info, error) {
	le := binary.LittleEndian
	info := Info{Format: FormatVmlinux}
	switch {
	case head[4] != elfClass64 || head[5] != elfLittleEndian:
		return Info{}, errNotKernel("the ELF file is not 64-bit little-endian")
	case le.Uint16(head[18:]) != elfMachineAMD64:
		return Info{}, errNotKernel("the ELF file is for machine %d, not x86-64", le.Uint16(head[18:]))
	case le.Uint16(head[16:]) != elfTypeExec && le.Uint16(head[16:]) != elfTypeDyn:
		return Info{}, errNotKernel("the ELF file is of type %d, not executable", le.Uint16(head[16:]))
	}
	programs, err := readPrograms(r, head)
	if err != nil {
		return Info{}, err
	}
	var loads int
	for _, p := range programs {
		switch p.kind {
		case elfTypeLoad:
			loads++
		case elfTypeNote:
			pvh, err := hasPVHNote(r, p.file)
			if err != nil {
				return Info{}, err
			}
			info.PVH = info.PVH || pvh
		}
	}
	if loads == 0 {
		return Info{}, errNotKernel("the ELF file has nothing to load")
	}
	if info.Version, err = findBanner(r, programs); err != nil {
		return Info{}, err
	}
	if info.Version == "" {
		return Info{}, errNotKernel("the ELF file nowhere says \"Linux version\"")
	}
	return info, nil
}

func readPrograms(r io.ReaderAt, head []byte) ([]program, error) {
	le := binary.LittleEndian
	off, size, count := le.Uint64(head[32:]), le.Uint16(head[54:]), le.Uint16(head[56:])
	if count == 0 || count > elfProgramsMax || size != elfProgramBytes || off > FileBytesMax {
		return nil, errNotKernel("the ELF file has %d program headers of %d bytes at %d", count, size, off)
	}
	raw := make([]byte, int(count)*elfProgramBytes)
	if _, err := r.ReadAt(raw, int64(off)); err != nil {
		return nil, truncated(err)
	}
	programs := make([]program, count)
	for i := range programs {
		p := raw[i*elfProgramBytes:]
		start, size := le.Uint64(p[8:]), le.Uint64(p[32:])
		if start > FileBytesMax || size > FileBytesMax {
			return nil, errNotKernel("segment %d of %d bytes at %d makes no sense", i, size, start)
		}
		programs[i] = program{kind: le.Uint32(p), file: span{off: int64(start), len: int64(size)}}
	}
	return programs, nil
}

// hasPVHNote looks for the Xen note with the PVH entry point in one segment of notes.
func hasPVHNote(r io.ReaderAt, at span) (bool, error) {
	if at.len > elfNotesMax {
		return false, errNotKernel("its notes have %d bytes", at.len)
	}
	notes := make([]byte, at.len)
	if _, err := r.ReadAt(notes, at.off); err != nil {
		return false, truncated(err)
	}
	le := binary.LittleEndian
	for len(notes) >= noteHeaderBytes {
		name, desc, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		notes = notes[noteHeaderBytes:]
		descAt := (name + 3) &^ 3
		next := descAt + (desc+3)&^3
		if next > uint64(len(notes)) {
			return false, nil // the last note may be unpadded; a kernel's own notes are not
		}
		if kind == notePVHEntry && string(notes[:name]) == "Xen\x00" && desc >= 4 {
			return true, nil
		}
		notes = notes[next:]
	}
	return false, nil
}

// findBanner searches the loaded segments for the line that every Linux starts its log with, and
// gives the version in it.
func findBanner(r io.ReaderAt, programs []program) (string, error) {
	const chunk = 1 << 20
	marker := []byte("Linux version ")
	overlap := len(marker) + versionBytesMax
	buf := make([]byte, chunk+overlap)
	budget := int64(bannerBytesMax)
	for _, p := range programs {
		if p.kind != elfTypeLoad {
			continue
		}
		for off := int64(0); off < p.file.len && budget > 0; off += chunk {
			want := min(int64(len(buf)), p.file.len-off)
			n, err := r.ReadAt(buf[:want], p.file.off+off)
			if err != nil && !errors.Is(err, io.EOF) {
				return "", err
			}
			if int64(n) < want {
				return "", errNotKernel("the file is cut off")
			}
			if v := versionIn(buf[:n], marker); v != "" {
				return v, nil
			}
			budget -= chunk
		}
	}
	return "", nil
}

// versionIn gives the first word behind a marker that looks like a version: the same words also
// stand in format strings.
func versionIn(b, marker []byte) string {
	for {
		i := bytes.Index(b, marker)
		if i < 0 {
			return ""
		}
		b = b[i+len(marker):]
		if v := firstWord(b[:min(len(b), versionBytesMax)]); v != "" && v[0] >= '0' && v[0] <= '9' {
			return v
		}
	}
}
