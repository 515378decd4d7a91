package transfer

import "time"

// rateWindow is over how long a rate is told.
const rateWindow = 5 * time.Second

// progress makes the figures that are told from counts and times.
type progress struct {
	total  int64
	last   time.Time
	points []progressPoint // of the window, oldest first
}

type progressPoint struct {
	at   time.Time
	done int64
}

func newProgress(now time.Time, total int64) progress {
	return progress{total: total, last: now, points: []progressPoint{{at: now}}}
}

// at gives the progress where it is due.
func (p *progress) at(now time.Time, done, socket int64, always bool) (Progress, bool) {
	if !always && now.Sub(p.last) < progressEvery {
		return Progress{}, false
	}
	p.last = now
	p.points = append(p.points, progressPoint{at: now, done: done})
	for len(p.points) > 2 && now.Sub(p.points[1].at) >= rateWindow {
		p.points = p.points[1:]
	}
	out := Progress{BytesDone: done, BytesTotal: p.total, SocketBytes: socket}
	if d := now.Sub(p.points[0].at); d > 0 {
		out.Rate = float64(done-p.points[0].done) / d.Seconds()
	}
	if out.Rate > 0 {
		out.Left = time.Duration(float64(p.total-done) / out.Rate * float64(time.Second))
	}
	return out, true
}
