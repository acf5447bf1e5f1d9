package agent

import (
	"strings"
	"testing"
)

const pressureText = "some avg10=12.49 avg60=3.00 avg300=1.02 total=1234567\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=0\n"

// TestHostLoad: the load is read of what Linux tells, and what is damaged or missing is
// unknown.
func TestHostLoad(t *testing.T) {
	const unknown = -1
	for _, tc := range []struct {
		file string
		want int
	}{
		{pressureText, 12},
		{"full avg10=99.00\nsome avg10=12.50 avg60=0\n", 13},
		{"some avg10=0.00", 0},
		{"some avg10=100.00", 100},
		{"some avg10=1e1", 10},
		{"", unknown},
		{"some", unknown},
		{"some avg60=3.00 avg10=12.49", unknown},
		{"some avg10=", unknown},
		{"some avg10=100.01", unknown},
		{"some avg10=-1", unknown},
		{"some avg10=NaN", unknown},
		{"some avg10=Inf", unknown},
		{"some avg10=1e999", unknown},
		{"full avg10=1.00", unknown},
		{"\x00some avg10=1.00", unknown},
	} {
		got := unknown
		if percent, known := pressure([]byte(tc.file)); known {
			got = int(percent)
		}
		if got != tc.want {
			t.Errorf("of %q the pressure is %d, not %d", tc.file, got, tc.want)
		}
	}
	for _, tc := range []struct {
		file       string
		processors int
		want       int
	}{
		{"0.52 0.58 0.59 3/602 12345\n", 2, 26},
		{"1.00", 2, 50},
		{"0", 1, 0},
		{"64.0 1 1", 2, 100},
		{"1e300", 2, 100},
		{"+Inf", 2, unknown},
		{"1.0", 0, unknown},
		{"", 2, unknown},
		{"-0.1", 2, unknown},
		{"NaN", 2, unknown},
		{"x", 2, unknown},
	} {
		got := unknown
		if percent, known := average([]byte(tc.file), tc.processors); known {
			got = int(percent)
		}
		if got != tc.want {
			t.Errorf("of %q and %d processors the load is %d, not %d", tc.file, tc.processors, got, tc.want)
		}
	}
	if beginning(t.TempDir()+"/none") != nil || beginning(t.TempDir()) != nil {
		t.Error("there is something of a file that is not there, or of a directory")
	}
	if load := HostLoad(); load == nil || *load > percentMax {
		t.Errorf("the load of this host is %v", load)
	}
}

func FuzzHostLoad(f *testing.F) {
	f.Add([]byte(pressureText))
	f.Add([]byte("0.52 0.58 0.59 3/602 12345\n"))
	f.Add([]byte(strings.Repeat("some avg10=", 99)))
	f.Fuzz(func(t *testing.T, file []byte) {
		if percent, _ := pressure(file); percent > percentMax {
			t.Errorf("a pressure of %d %%", percent)
		}
		if percent, _ := average(file, 2); percent > percentMax {
			t.Errorf("a load of %d %%", percent)
		}
	})
}
