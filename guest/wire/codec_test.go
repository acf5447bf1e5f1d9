package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// fill sets every exported field of v to something that is not zero, so that a field which encode or
// decode forgot shows.
func fill(v reflect.Value, seed *int) {
	*seed++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), seed)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), seed)
		}
	case reflect.Slice:
		switch v.Type().Elem().Kind() {
		case reflect.String:
			v.Set(reflect.ValueOf([]string{"a", "", "c=" + strings.Repeat("d", *seed)}))
		case reflect.Uint8:
			v.Set(reflect.ValueOf([]byte{0, byte(*seed), 0xfb}))
		default:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			for i := range v.Len() {
				fill(v.Index(i), seed)
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), seed)
		}
	case reflect.String:
		v.SetString(strings.Repeat("s", *seed%7+1))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*seed%60) + 1)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*seed) + 1)
	case reflect.Float64:
		v.SetFloat(float64(*seed) + 0.25)
	default:
		panic("fill: " + v.Kind().String())
	}
}

func TestMessagesKeepEveryField(t *testing.T) {
	seed := 0
	var req Request
	fill(reflect.ValueOf(&req).Elem(), &seed)
	gotReq, err := DecodeRequest(req.Encode())
	if err != nil || !reflect.DeepEqual(*gotReq, req) {
		t.Errorf("request: %v\n got %+v\nwant %+v", err, gotReq, req)
	}
	var resp Response
	fill(reflect.ValueOf(&resp).Elem(), &seed)
	gotResp, err := DecodeResponse(resp.Encode())
	if err != nil || !reflect.DeepEqual(*gotResp, resp) {
		t.Errorf("response: %v\n got %+v\nwant %+v", err, gotResp, resp)
	}
	var event Event
	fill(reflect.ValueOf(&event).Elem(), &seed)
	gotEvent, err := DecodeEvent(event.Encode())
	if err != nil || !reflect.DeepEqual(*gotEvent, event) {
		t.Errorf("event: %v\n got %+v\nwant %+v", err, gotEvent, event)
	}
	var exit Exit
	fill(reflect.ValueOf(&exit).Elem(), &seed)
	gotExit, err := DecodeExit(exit.Encode())
	if err != nil || !reflect.DeepEqual(*gotExit, exit) {
		t.Errorf("exit: %v\n got %+v\nwant %+v", err, gotExit, exit)
	}
}

func TestDecodeRefuses(t *testing.T) {
	var many encoder
	for range maxItems + 1 {
		many.item(1, "")
	}
	var tooMany encoder
	tooMany.item(3, string(many.b))
	var wide encoder
	wide.message(7, func(e *encoder) { e.uint(1, 1<<16) })
	var wideConfig encoder
	wideConfig.item(2, string(wide.b))
	for name, b := range map[string][]byte{
		"half a tag":          {0x80},
		"field zero":          {0x00, 1},
		"huge field number":   {0xff, 0xff, 0xff, 0xff, 0x0f, 1},
		"no value":            {0x08},
		"kind of fixed 64":    {0x09, 1, 2, 3, 4, 5, 6, 7, 8},
		"bytes beyond end":    {0x0a, 200, 1},
		"number for a string": {0x08, 1},
		"string for a number": {0x2a, 0},
		"string for message":  {0x10, 0},
		"too many arguments":  tooMany.b,
		"columns of 65536":    wideConfig.b,
		"bool of 2":           {0x22, 2, 0x08, 2},
	} {
		if r, err := DecodeRequest(b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	var nan encoder
	nan.message(3, func(e *encoder) { e.uint(4, 0x7ff8000000000001) })
	if r, err := DecodeResponse(nan.b); !errors.Is(err, ErrMessage) {
		t.Errorf("load of NaN: %+v, %v", r, err)
	}
	unknown := append((&Request{Method: MethodPing}).Encode(), 0x78, 5, 0x7a, 2, 'x', 'y')
	if r, err := DecodeRequest(unknown); err != nil || r.Method != MethodPing {
		t.Errorf("unknown fields: %+v, %v", r, err)
	}
}

func TestWhatGuestsSayIsCleaned(t *testing.T) {
	e := Event{Kind: "x\x1b[2J", Status: Status{
		BootID: strings.Repeat("b", 1000), KernelRelease: "6\n1\xff",
		Exit: &Exit{Code: 1 << 20, Signal: -1, Message: strings.Repeat("é", MaxMessage)},
	}}
	got, err := DecodeEvent(e.Encode())
	if err != nil {
		t.Fatal(err)
	}
	x := got.Status.Exit
	if got.Kind != "x?[2J" || len(got.Status.BootID) != MaxIDLen || got.Status.KernelRelease != "6?1?" || x.Code != 0 || x.Signal != 127 {
		t.Errorf("%+v %+v", got, x)
	}
	if len(x.Message) > MaxMessage || strings.Trim(x.Message, "é") != "" {
		t.Errorf("message of %d bytes: %q", len(x.Message), x.Message[len(x.Message)-8:])
	}
	r := Response{Problem: &Problem{Kind: "\x00", Code: "c", Message: "m\r", Hint: "h\a", ExitCode: 383}}
	gotR, err := DecodeResponse(r.Encode())
	if want := (Problem{Kind: "?", Code: "c", Message: "m?", Hint: "h?", ExitCode: 127}); err != nil || *gotR.Problem != want {
		t.Errorf("%+v, %v", gotR.Problem, err)
	}
}

func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		var types []FrameType
		var payloads [][]byte
		for range rapid.IntRange(0, 8).Draw(t, "frames") {
			ft := rapid.SampledFrom([]FrameType{FrameRequest, FrameStdin, FrameStdout, FrameStdinEnd, FrameGap, FrameResize, FrameSignal}).Draw(t, "type")
			limit, _ := maxPayload(ft)
			p := rapid.SliceOfN(rapid.Byte(), 0, min(limit, 300)).Draw(t, "payload")
			var err error
			if stream, err = AppendFrame(stream, ft, p); err != nil {
				t.Fatal(err)
			}
			types, payloads = append(types, ft), append(payloads, p)
		}
		r := NewFrameReader(bytes.NewReader(stream))
		for i := range types {
			ft, p, err := r.Next()
			if err != nil || ft != types[i] || !bytes.Equal(p, payloads[i]) {
				t.Fatalf("frame %d: %d %x %v", i, ft, p, err)
			}
		}
		if _, _, err := r.Next(); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
		if len(stream) > 0 {
			cut := rapid.IntRange(1, len(stream)-1).Draw(t, "cut")
			r := NewFrameReader(bytes.NewReader(stream[:cut]))
			var err error
			for n := 0; err == nil && n <= len(types); n++ {
				_, _, err = r.Next()
			}
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		}
	})
}

// Only the configuration may be large, and only in a frame of its own.
func TestConfigureFrame(t *testing.T) {
	req := Request{Method: MethodConfigure, Config: &BootConfig{Files: []File{{Path: "/f", Content: make([]byte, MaxControl)}}}}
	b := req.Encode()
	if err := WriteFrame(io.Discard, FrameRequest, b); !errors.Is(err, ErrFrameSize) {
		t.Errorf("as a request: %v", err)
	}
	var buf bytes.Buffer
	if err := WriteFrame(&buf, FrameConfigure, b); err != nil {
		t.Fatal(err)
	}
	ft, p, err := NewFrameReader(&buf).Next()
	if err != nil || ft != FrameConfigure {
		t.Fatalf("%d, %v", ft, err)
	}
	if got, err := DecodeRequest(p); err != nil || !reflect.DeepEqual(*got, req) {
		t.Errorf("%v", err)
	}
	if err := WriteFrame(io.Discard, FrameConfigure, make([]byte, MaxConfigure+1)); !errors.Is(err, ErrFrameSize) {
		t.Errorf("above the limit: %v", err)
	}
}

// A guest tells of no more processes than it may, and in text that can be shown.
func TestProcessesAreBounded(t *testing.T) {
	r := Response{
		Processes: []Process{{User: "\x1b[31m", Command: strings.Repeat("c", 2*MaxCommand)}},
		Probe:     &ProbeResult{Message: strings.Repeat("m", 2*MaxMessage)}, File: &FileInfo{Link: "\n"},
	}
	got, err := DecodeResponse(r.Encode())
	if err != nil || got.Processes[0].User != "?[31m" || len(got.Processes[0].Command) != MaxCommand || len(got.Probe.Message) != MaxMessage || got.File.Link != "?" {
		t.Errorf("%+v, %v", got, err)
	}
	r.Processes = make([]Process, TopProcesses+1)
	if _, err := DecodeResponse(r.Encode()); !errors.Is(err, ErrMessage) {
		t.Errorf("one more: %v", err)
	}
}

func TestFill(t *testing.T) {
	buf := make([]byte, 4)
	for name, c := range map[string]struct {
		r    io.Reader
		n    int
		want error
	}{
		"full":     {strings.NewReader("12345"), 4, nil},
		"end":      {strings.NewReader("12"), 2, io.EOF},
		"own":      {io.MultiReader(strings.NewReader("1"), failing{}), 1, io.ErrUnexpectedEOF},
		"in parts": {io.MultiReader(strings.NewReader("1"), strings.NewReader("234")), 4, nil},
	} {
		if n, err := Fill(c.r, buf); n != c.n || err != c.want {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestFrameLimits(t *testing.T) {
	if _, _, err := NewFrameReader(bytes.NewReader([]byte{99, 0, 0, 0})).Next(); !errors.Is(err, ErrFrameType) {
		t.Errorf("unknown type: %v", err)
	}
	if _, _, err := NewFrameReader(bytes.NewReader([]byte{byte(FrameStdout), 0xff, 0xff, 0xff})).Next(); !errors.Is(err, ErrFrameSize) {
		t.Errorf("16 MiB: %v", err)
	}
	if err := WriteFrame(io.Discard, FrameRequest, make([]byte, MaxControl+1)); !errors.Is(err, ErrFrameSize) {
		t.Errorf("write of too much: %v", err)
	}
	if err := WriteFrame(io.Discard, 99, nil); !errors.Is(err, ErrFrameType) {
		t.Errorf("write of an unknown type: %v", err)
	}
	size := WindowSize{Columns: 300, Rows: 7}
	if got, err := ParseResize(ResizePayload(size)); err != nil || got != size {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ParseResize([]byte{1}); err == nil {
		t.Error("a resize of one byte was taken")
	}
}

func FuzzDecode(f *testing.F) {
	seed := 0
	var req Request
	fill(reflect.ValueOf(&req).Elem(), &seed)
	f.Add(req.Encode())
	var resp Response
	fill(reflect.ValueOf(&resp).Elem(), &seed)
	f.Add(resp.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := DecodeRequest(b); err == nil {
			again, err := DecodeRequest(r.Encode())
			if err != nil || !reflect.DeepEqual(r, again) {
				t.Fatalf("%+v became %+v, %v", r, again, err)
			}
		}
		if r, err := DecodeResponse(b); err == nil && r.Problem != nil && len(r.Problem.Message) > MaxMessage {
			t.Fatalf("message of %d bytes", len(r.Problem.Message))
		}
		if e, err := DecodeEvent(b); err == nil && len(e.Status.BootID) > MaxIDLen {
			t.Fatalf("boot id of %d bytes", len(e.Status.BootID))
		}
		if x, err := DecodeExit(b); err == nil && (x.Code < 0 || x.Code > 255) {
			t.Fatalf("code %d", x.Code)
		}
	})
}

func FuzzFrameReader(f *testing.F) {
	f.Add([]byte{byte(FrameStdout), 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewFrameReader(bytes.NewReader(b))
		for total := 0; ; {
			ft, p, err := r.Next()
			if err != nil {
				return
			}
			if limit, known := maxPayload(ft); !known || len(p) > limit {
				t.Fatalf("type %d with %d bytes", ft, len(p))
			}
			if total += frameHeader + len(p); total > len(b) {
				t.Fatal("more than there was")
			}
		}
	})
}
